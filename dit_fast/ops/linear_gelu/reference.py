# SPDX-License-Identifier: Apache-2.0
"""A linear layer and its GELU in plain PyTorch: the specification."""

import torch.nn.functional as F
from torch import Tensor


def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.gelu(F.linear(x, weight, bias), approximate="tanh")  # (..., K) -> (..., F)
