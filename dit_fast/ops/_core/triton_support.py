# SPDX-License-Identifier: Apache-2.0
"""Whether Triton kernels can run here: on a GPU, or on CPU tensors through Triton's interpreter."""

import importlib.util

from dit_fast import env

TRITON_MISSING = None if importlib.util.find_spec("triton") else "the triton package is not installed"


def triton_why_not(device: str) -> str | None:
    if TRITON_MISSING is not None:
        return TRITON_MISSING
    if device == "cuda" or (device == "cpu" and env.triton_interpret()):
        return None
    return f"tensors are on {device}; Triton needs a GPU, or its interpreter (TRITON_INTERPRET=1) for CPU tensors"
