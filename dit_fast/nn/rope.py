# SPDX-License-Identifier: Apache-2.0
"""Rotary position embeddings of a grid of patches, for `ops.attention(rope=...)`."""

import torch
from torch import Tensor


def rope_2d(
    h: int, w: int, head_dim: int, *, theta: float = 10000.0, device: torch.device | None = None
) -> Tensor:
    """Angles of an h x w grid, row by row: (2, h*w, head_dim / 2) float32, cosines and sines.

    The first half of a head's pairs turns with the row, the second with the column (as axial RoPE in EVA-02,
    arXiv 2303.11331, and RoPE-ViT, arXiv 2403.13298), each over `theta`'s geometric range of frequencies (RoFormer,
    arXiv 2104.09864, section 3.2.2).

    Raises:
        ValueError: head_dim is no multiple of 4.
    """
    if head_dim % 4:
        raise ValueError(f"rope_2d: `head_dim` must be a multiple of 4, got {head_dim}")
    count = head_dim // 4
    omega = theta ** (-torch.arange(count, dtype=torch.float64, device=device) / count)
    row = torch.arange(h, dtype=torch.float64, device=device).repeat_interleave(w)
    column = torch.arange(w, dtype=torch.float64, device=device).repeat(h)
    angle = torch.cat([row[:, None] * omega, column[:, None] * omega], dim=1)  # (h*w, head_dim / 2)
    return torch.stack([angle.cos(), angle.sin()]).float()
