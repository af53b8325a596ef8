# SPDX-License-Identifier: Apache-2.0
"""The three builds of _host_exec that `make host_exec` makes: how to load one, and Python under a sanitizer.

`load()` gives this process the plain build. The others need their sanitizer's runtime before anything else is loaded:
`run_sanitized("address", script, ...)` starts a Python that has it, whose script loads its own with `load("address")`.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch  # noqa: F401  (the module's operators register with it)

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = {"none": "host_exec", "address": "host_exec-address", "thread": "host_exec-thread"}
OPTIONS = {
    "address": {"ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1"},
    # A race reported for one kernel must not hide the same race of the next.
    "thread": {"TSAN_OPTIONS": "suppress_equal_addresses=0"},
}
# libstdc++ beside it: AddressSanitizer looks for the function that throws when it starts.
RUNTIMES = {"address": ("libasan.so", "libstdc++.so"), "thread": ("libtsan.so",)}


def library(sanitizer: str = "none") -> Path:
    return ROOT / "build" / FOLDERS[sanitizer] / "_host_exec.so"


def why_not(sanitizer: str = "none") -> str | None:
    path = library(sanitizer)
    if not path.exists():
        return f"{path.relative_to(ROOT)} is not built (make host_exec; it needs CUDA's headers and g++)"
    return None


def load(sanitizer: str = "none") -> ModuleType:
    """The module. Without it the calling test file is skipped with the reason, but where nvcc is it fails."""
    if "_host_exec" in sys.modules:
        return sys.modules["_host_exec"]
    if reason := why_not(sanitizer):
        assert not shutil.which("nvcc"), reason
        pytest.skip(reason, allow_module_level=True)
    spec = importlib.util.spec_from_file_location("_host_exec", library(sanitizer))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["_host_exec"] = module
    spec.loader.exec_module(module)
    return module


def run_sanitized(sanitizer: str, *arguments: str, timeout: float = 600) -> subprocess.CompletedProcess[str]:
    """`python *arguments` with the sanitizer's runtime loaded. A finding makes the exit status nonzero."""
    compiler = shutil.which("g++")
    assert compiler, "the sanitized builds were made with g++, which is gone"
    asked = [[compiler, f"-print-file-name={name}"] for name in RUNTIMES[sanitizer]]
    paths = [subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() for command in asked]
    env = {**os.environ, **OPTIONS[sanitizer], "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    # ThreadSanitizer maps fixed addresses, which a randomised layout may occupy.
    command = ["setarch", "-R"] if sanitizer == "thread" else []
    command += ["env", "LD_PRELOAD=" + ":".join(paths), sys.executable, *arguments]
    return subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=timeout)
