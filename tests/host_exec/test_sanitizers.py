# SPDX-License-Identifier: Apache-2.0
"""Every CUDA kernel under AddressSanitizer with UBSan, and under ThreadSanitizer: no overrun, no race, no overflow."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.host_exec.backend import CUDA_OPS
from tests.host_exec.build import library

ROOT = Path(__file__).parents[2]
RUNTIMES = {"address": ("libasan.so", "libstdc++.so"), "thread": ("libtsan.so",)}
OPTIONS = {"address": ("ASAN_OPTIONS", "detect_leaks=0"), "thread": ("TSAN_OPTIONS", "halt_on_error=1")}


def environment(sanitizer: str) -> dict[str, str]:
    """What a Python needs to load a sanitized library: the compiler's runtime before everything else."""
    paths = [
        subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout.strip()
        for name in RUNTIMES[sanitizer]
    ]
    variable, options = OPTIONS[sanitizer]
    return {**os.environ, "LD_PRELOAD": " ".join(paths), variable: options, "OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize("name", CUDA_OPS)
@pytest.mark.parametrize("sanitizer", RUNTIMES)
def test_nothing_is_found(sanitizer, name):
    assert library(sanitizer).exists(), f"{library(sanitizer)} is not built: make host_exec"
    command = [sys.executable, "-m", "tests.host_exec.sanitized", sanitizer, name]
    if sanitizer == "thread":  # its shadow memory wants the default layout of addresses
        command = ["setarch", "-R", *command]
    done = subprocess.run(command, env=environment(sanitizer), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    assert f"{sanitizer}: " in done.stdout
