# SPDX-License-Identifier: Apache-2.0
"""Patch and position embedding in plain PyTorch: the specification."""

import torch.nn.functional as F
from torch import Tensor


def patch_embed(x: Tensor, weight: Tensor, bias: Tensor | None, pos: Tensor) -> Tensor:
    patches = F.conv2d(x, weight, bias, stride=weight.shape[-1])  # (N, D, H/p, W/p)
    return patches.flatten(2).transpose(1, 2) + pos  # (N, T, D)
