# SPDX-License-Identifier: Apache-2.0
"""Gated residual in plain PyTorch: the specification."""

from torch import Tensor


def gated_residual(x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
    return x + gate.unsqueeze(1) * y  # (N, T, D)
