# SPDX-License-Identifier: Apache-2.0
"""Every environment variable the package reads, in one place (a test holds the list)."""

import os

DEFAULT_BACKEND = os.environ.get("DIT_FAST_BACKEND", "auto")
"""Backend used outside `use_backend`: "auto", "reference", "cpu", "triton" or "cuda"."""


def triton_interpret() -> bool:
    """Whether Triton runs its kernels in its interpreter (Triton's own TRITON_INTERPRET, set before first use)."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def launched() -> bool:
    """Whether this is one of several processes that `torchrun` or the like started; torch reads these variables."""
    return {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()


def quiet_profiler() -> None:
    """PyTorch's profiler otherwise writes two lines to stderr whenever it is used (Kineto's own variable)."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")


def without_triton_interpret() -> dict[str, str]:
    """The environment for a child process in which Triton compiles its kernels."""
    return {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
