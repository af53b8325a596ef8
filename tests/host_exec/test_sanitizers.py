# SPDX-License-Identifier: Apache-2.0
"""Every CUDA kernel under AddressSanitizer with UBSan, and under ThreadSanitizer: no overrun, no race, no overflow."""

import pytest

from tests.host_exec.backend import CUDA_OPS
from tests.host_exec.build import OPTIONS, run_sanitized


@pytest.mark.parametrize("sanitizer", OPTIONS)
def test_nothing_is_found(sanitizer):
    run = run_sanitized(sanitizer, "-m", "tests.host_exec.sanitized", sanitizer, *CUDA_OPS)
    assert run.returncode == 0, (run.stdout + run.stderr)[-4000:]
    for name in CUDA_OPS:
        assert f"{sanitizer}: {name}: " in run.stdout
