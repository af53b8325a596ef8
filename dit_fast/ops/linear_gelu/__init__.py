# SPDX-License-Identifier: Apache-2.0
"""The first half of a transformer's MLP: a linear layer with its GELU in the epilogue."""

import torch
from torch import Tensor

from .._core import autocast, check_same, check_tensor, fail
from .autograd import OP
from .reference import linear_gelu as reference


def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A linear layer, then GELU in its tanh form.

    y = gelu(x weight^T + bias),   gelu(u) = 0.5 u (1 + tanh(sqrt(2/pi) (u + 0.044715 u^3)))
    (Hendrycks and Gimpel, arXiv 1606.08415, section 2)

    Args:
        x: (..., K); float32, bfloat16 or float16 (float64 on the reference backend).
        weight: (F, K), same dtype and device as x.
        bias: (F,), likewise.

    Returns:
        (..., F) in x's dtype. Products are summed in float32. For the gradient the (..., F) values before the GELU
        are kept; without one (no input requires it, or torch.no_grad) they are not.
        Under autocast the inputs are cast to its dtype, as PyTorch casts those of linear.

    Raises:
        ValueError: an argument's shape, dtype or device does not fit the others.
        BackendUnavailable: a backend was asked for by name and cannot run.
    """
    check_tensor("linear_gelu", "weight", weight, ("F", "K"))
    f, k = weight.shape
    if isinstance(x, Tensor) and x.shape[-1:] != (k,):
        fail("linear_gelu", "x", f"of shape (..., {k})", f"shape {tuple(x.shape)}")
    check_tensor("linear_gelu", "x", x, ("...",) * getattr(x, "ndim", 0))
    check_tensor("linear_gelu", "bias", bias, (f,))
    x, weight, bias = autocast(x, weight, bias, matmul=True)
    check_same("linear_gelu", "x", x, weight=weight, bias=bias)
    backend = OP.select(x, weight, bias)
    if backend == "reference":
        return reference(x, weight, bias)
    keep = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad or bias.requires_grad)
    return OP(x, weight, bias, keep, backend)[0]
