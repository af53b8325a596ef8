# SPDX-License-Identifier: Apache-2.0
"""The compiled library: one shared object on torch's stable ABI, loaded once at import."""

from functools import cache
from pathlib import Path

import torch

LIBRARY = Path(__file__).resolve().parents[2] / "_native.so"


def _load() -> str | None:
    """Load the library; the answer is why it could not be, or None."""
    if not LIBRARY.exists():
        return f"the native library is not built ({LIBRARY.name} is missing: no C++ compiler or no torch at install)"
    try:
        torch.ops.load_library(str(LIBRARY))
    except OSError as error:
        return f"the native library does not load: {error.__cause__ or error}"
    return None


MISSING = _load()


def has_kernel(op: str, device_type: str) -> bool:
    """Whether the library holds a kernel of `op` for "cpu" or "cuda"."""
    if MISSING is not None or not hasattr(torch.ops.dit_fast_native, op):
        return False
    name = f"dit_fast_native::{op}"
    return torch._C._dispatch_has_kernel_for_dispatch_key(name, device_type.upper())


def instruction_sets() -> list[str]:
    """Instruction sets that the CPU kernels were compiled for and this machine has, best first."""
    return [] if MISSING else torch.ops.dit_fast_native.isa_available().split(",")


@cache
def instruction_set() -> str | None:
    """The instruction set in use: "avx512", "avx2" or "portable"; None without the library."""
    return None if MISSING else torch.ops.dit_fast_native.isa_get()


def set_instruction_set(name: str) -> None:
    """Use another of `instruction_sets()` from now on, in the whole process (tests, comparisons)."""
    if name not in instruction_sets():
        raise ValueError(f"set_instruction_set: `name` must be one of {instruction_sets()}, got {name!r}")
    torch.ops.dit_fast_native.isa_set(name)
    instruction_set.cache_clear()
