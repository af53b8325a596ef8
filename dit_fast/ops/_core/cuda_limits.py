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
