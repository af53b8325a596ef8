# SPDX-License-Identifier: Apache-2.0
"""Gated residual, then adaptive layer norm, in plain PyTorch: the specification."""

import torch.nn.functional as F
from torch import Tensor


def gated_residual_adaln(
    x: Tensor, y: Tensor, gate: Tensor, shift: Tensor, scale: Tensor, eps: float = 1e-6
) -> tuple[Tensor, Tensor]:
    x_new = x + gate.unsqueeze(1) * y  # (N, T, D), in storage dtype: the norm sees what the next block will
    h = F.layer_norm(x_new, x_new.shape[-1:], eps=eps)  # (N, T, D)
    return x_new, h * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)
