# SPDX-License-Identifier: Apache-2.0
"""python -m tests.host_exec.sanitized OP...: small cases of each op on a sanitized build; run by test_sanitizers.py.

The process must have the sanitizer's runtime loaded first (build.run_sanitized). A finding ends it with the sanitizer's
exit status; a wrong result with 1.
"""

import sys

import torch

from tests.host_exec.build import load

host_exec = load(sys.argv[1])

from dit_fast.ops import specs  # noqa: E402
from dit_fast.parity import check_case  # noqa: E402
from tests.host_exec.backend import NAME  # noqa: E402

SMALL = 40_000  # elements of the largest input; a sanitized fiber is slow

torch.set_num_threads(1)
compared = 0
for name in sys.argv[2:]:
    spec = specs()[name]
    for order, seed in (("ascending", 0), ("random", 5)):
        host_exec.set_order(order, seed)
        for dtype in (torch.float32, torch.bfloat16):
            for case in spec.cases:
                inputs = spec.make(case, dtype)
                if max(v.numel() for v in inputs.values() if isinstance(v, torch.Tensor)) > SMALL:
                    continue
                for row in check_case(spec, NAME, dtype, case):
                    assert row.passed is not False, row
                    compared += row.passed is not None
print(f"{host_exec.sanitizer()}: {compared} tensors compared")
assert compared and host_exec.sanitizer() == sys.argv[1]
