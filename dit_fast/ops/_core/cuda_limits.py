# SPDX-License-Identifier: Apache-2.0
"""What the CUDA kernels cannot do, in words: the reasons that `Op.limits` gives."""

from collections.abc import Sequence

from torch import Tensor

MAX_ROW_BYTES = 12288
"""A thread holds 16 bytes of a row, and a block has at most 768 threads (csrc/common/cuda/rows.cuh)."""


def row_limits(backend: str, tensors: Sequence[Tensor]) -> str | None:
    """For ops on tokens (N, T, D), the first tensor: D is a multiple of 8 and a row has at most 12 KiB."""
    if backend != "cuda":
        return None
    d, most = tensors[0].shape[-1], MAX_ROW_BYTES // tensors[0].dtype.itemsize
    if d % 8 or d > most:
        return f"D must be a multiple of 8, up to {most} in {tensors[0].dtype}, got {d}"
    return None


MAX_FINAL_BYTES = 8192
"""A block holds 16 tokens of dh and dy in shared memory, 163 KB on sm_80 (csrc/ops/final_layer/final_layer.cu)."""


def final_layer_limits(backend: str, tensors: Sequence[Tensor]) -> str | None:
    """For x (N, T, D) and weight (O, D): D is a multiple of 8, and D + O elements have at most 8 KiB."""
    if backend != "cuda":
        return None
    (features, d), most = tensors[1].shape, MAX_FINAL_BYTES // tensors[1].dtype.itemsize
    if d % 8:
        return f"D must be a multiple of 8, got {d}"
    if d + features > most:
        return f"D and the rows of `weight` must be at most {most} together in {tensors[1].dtype}, got {d} + {features}"
    return None
