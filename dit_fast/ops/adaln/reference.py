# SPDX-License-Identifier: Apache-2.0
"""Adaptive layer norm in plain PyTorch: the specification."""

import torch.nn.functional as F
from torch import Tensor


def adaln(x: Tensor, shift: Tensor, scale: Tensor, eps: float = 1e-6) -> Tensor:
    h = F.layer_norm(x, x.shape[-1:], eps=eps)  # (N, T, D)
    return h * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)  # (N, T, D)
