# SPDX-License-Identifier: Apache-2.0
"""The final layer in plain PyTorch: the specification."""

import torch.nn.functional as F
from torch import Tensor


def final_layer(
    x: Tensor,
    shift: Tensor | None,
    scale: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    *,
    grid: tuple[int, int],
    patch_size: int,
    eps: float = 1e-6,
) -> Tensor:
    if shift is not None and scale is not None:
        x = F.layer_norm(x, x.shape[-1:], eps=eps)  # (N, T, D)
        x = x * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)  # (N, T, D)
    n, (h, w), p = x.shape[0], grid, patch_size
    c = weight.shape[0] // (p * p)
    patches = F.linear(x, weight, bias).view(n, h, w, p, p, c)  # (N, T, p*p*C) by row, column, then within
    return patches.permute(0, 5, 1, 3, 2, 4).reshape(n, c, h * p, w * p)  # (N, C, H, W)
