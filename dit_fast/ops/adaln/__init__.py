# SPDX-License-Identifier: Apache-2.0
"""Adaptive layer norm: LN(x) * (1 + scale) + shift, with a shift and a scale per sample."""

from torch import Tensor

from .._core import autocast, check_same, check_tensor
from .autograd import OP
from .reference import adaln as reference


def adaln(x: Tensor, shift: Tensor, scale: Tensor, eps: float = 1e-6) -> Tensor:
    """Layer norm without affine parameters, then the sample's own scale and shift.

    h = LN(x) * (1 + scale) + shift   (DiT, arXiv 2212.09748, section 3.2, "adaLN block")

    Args:
        x: (N, T, D) tokens; float32, bfloat16 or float16 (float64 on the reference backend).
        shift, scale: (N, D), same dtype and device as x; rows may be strided views of one (N, 6D) tensor.
        eps: added to the variance.

    Returns:
        (N, T, D) in x's dtype. Statistics are float32; the result is rounded once.
        Under autocast the inputs are taken as float32, as PyTorch takes those of layer_norm.

    Raises:
        ValueError: an argument's shape, dtype or device does not fit x.
        BackendUnavailable: a backend was asked for by name and cannot run.
    """
    check_tensor("adaln", "x", x, ("N", "T", "D"))
    n, _, d = x.shape
    check_tensor("adaln", "shift", shift, (n, d))
    check_tensor("adaln", "scale", scale, (n, d))
    x, shift, scale = autocast(x, shift, scale)
    check_same("adaln", "x", x, shift=shift, scale=scale)
    backend = OP.select(x, shift, scale)
    if backend == "reference":
        return reference(x, shift, scale, eps)
    return OP(x, shift, scale, eps, backend)[0]
