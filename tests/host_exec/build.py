# SPDX-License-Identifier: Apache-2.0
"""The three builds of _host_exec that `make host_exec` makes, and how to load one."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch  # noqa: F401  (whose operators the module registers with)

ROOT = Path(__file__).resolve().parents[2]


def library(sanitizer: str = "none") -> Path:
    folder = "host_exec" if sanitizer == "none" else f"host_exec-{sanitizer}"
    return ROOT / "build" / folder / "_host_exec.so"


def load(sanitizer: str = "none") -> ModuleType:
    """The module, or a skip of the calling test file with the one reason it can have."""
    if "_host_exec" in sys.modules:
        return sys.modules["_host_exec"]
    path = library(sanitizer)
    if not path.exists():
        pytest.skip(f"{path.relative_to(ROOT)} is not built: make host_exec", allow_module_level=True)
    spec = importlib.util.spec_from_file_location("_host_exec", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["_host_exec"] = module
    spec.loader.exec_module(module)
    return module
