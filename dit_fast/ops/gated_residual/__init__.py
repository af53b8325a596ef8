# SPDX-License-Identifier: Apache-2.0
"""Gated residual: x + gate * y, with a gate per sample."""

from torch import Tensor

from .._core import autocast, check_same, check_tensor
from .autograd import OP
from .reference import gated_residual as reference


def gated_residual(x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
    """Add a block's output to the residual stream, scaled by the sample's own gate.

    x + gate * y   (DiT, arXiv 2212.09748, section 3.2, "adaLN-Zero block", where the gate is called alpha)

    Args:
        x: (N, T, D) the residual stream; float32, bfloat16 or float16 (float64 on the reference backend).
        y: (N, T, D) what an attention or an MLP gave, same dtype and device as x.
        gate: (N, D), likewise; rows may be strided views of one (N, 6D) tensor, or one row expanded.

    Returns:
        (N, T, D) in x's dtype, computed in float32 and rounded once.
        Under autocast the inputs are taken as float32, as `adaln` takes them.

    Raises:
        ValueError: an argument's shape, dtype or device does not fit x.
        BackendUnavailable: a backend was asked for by name and cannot run.
    """
    check_tensor("gated_residual", "x", x, ("N", "T", "D"))
    n, t, d = x.shape
    check_tensor("gated_residual", "y", y, (n, t, d))
    check_tensor("gated_residual", "gate", gate, (n, d))
    x, y, gate = autocast(x, y, gate)
    check_same("gated_residual", "x", x, y=y, gate=gate)
    backend = OP.select(x, y, gate)
    if backend == "reference":
        return reference(x, y, gate)
    return OP(x, y, gate, backend)
