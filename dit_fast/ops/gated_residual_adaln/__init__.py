# SPDX-License-Identifier: Apache-2.0
"""Gated residual and the adaptive layer norm that follows it, in one pass over the tokens."""

from torch import Tensor

from .._core import autocast, check_same, check_tensor
from .autograd import OP
from .reference import gated_residual_adaln as reference


def gated_residual_adaln(
    x: Tensor, y: Tensor, gate: Tensor, shift: Tensor, scale: Tensor, eps: float = 1e-6
) -> tuple[Tensor, Tensor]:
    """End one sub-block and begin the next: add its gated output to the residual stream, then normalise.

    x_new = x + gate * y,   h = LN(x_new) * (1 + scale) + shift
    (DiT, arXiv 2212.09748, section 3.2, "adaLN-Zero block", where the gate is called alpha)

    Args:
        x: (N, T, D) the residual stream; float32, bfloat16 or float16 (float64 on the reference backend).
        y: (N, T, D) what an attention or an MLP gave, same dtype and device as x.
        gate, shift, scale: (N, D), likewise; rows may be strided views of one (N, 6D) tensor, or one row
            expanded.
        eps: added to the variance.

    Returns:
        x_new and h, each (N, T, D) in x's dtype. x_new is rounded once; h is computed from the rounded x_new
        in float32 and rounded once. x_new may stay unused (the final layer): its gradient then costs nothing.
        Under autocast the inputs are taken as float32, as `adaln` takes them.

    Raises:
        ValueError: an argument's shape, dtype or device does not fit x.
        BackendUnavailable: a backend was asked for by name and cannot run.
    """
    op = "gated_residual_adaln"
    check_tensor(op, "x", x, ("N", "T", "D"))
    n, t, d = x.shape
    check_tensor(op, "y", y, (n, t, d))
    check_tensor(op, "gate", gate, (n, d))
    check_tensor(op, "shift", shift, (n, d))
    check_tensor(op, "scale", scale, (n, d))
    x, y, gate, shift, scale = autocast(x, y, gate, shift, scale)
    check_same(op, "x", x, y=y, gate=gate, shift=shift, scale=scale)
    backend = OP.select(x, y, gate, shift, scale)
    if backend == "reference":
        return reference(x, y, gate, shift, scale, eps)
    return OP(x, y, gate, shift, scale, eps, backend)[:2]
