# SPDX-License-Identifier: Apache-2.0
"""torch.nn.functional.linear on a CPU, by the kernels of linear_gelu without the GELU."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .._core import KERNEL_DTYPES, autocast, current_backend, why_not_direct
from .._core.backends import announce
from . import cpu_linear


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """y = x weight^T + bias: `torch.nn.functional.linear`, where nothing else is faster.

    A faster kernel serves (`cpu_linear`) on a CPU, oneDNN's where no gradient is wanted; it follows linear_gelu's
    backend, of which "auto" and "cpu" have it. Everything else, errors too, is PyTorch's function: on GPUs, in a
    compiled graph, under transforms and modes, for subclasses of Tensor (sharded, quantised).

    Args:
        x: (..., K) floating point.
        weight: (F, K), same dtype and device as x.
        bias: (F,), likewise, or None.

    Returns:
        (..., F) in x's dtype; under autocast in its dtype.
    """
    if why_not(x, weight, bias) is not None:
        return F.linear(x, weight, bias)
    given = x, weight, bias
    x, weight, bias = autocast(x, weight, bias, matmul=True)
    if unfit(x, weight, bias) is not None:
        return F.linear(*given)
    if cpu_linear.why_not("own") is None:
        return (_Own.apply if torch.is_grad_enabled() else _own)(x, weight, bias)
    with torch._C._AutoDispatchBelowADInplaceOrView():  # to autograd the result is no view
        rows = x.contiguous().view(-1, x.shape[-1])  # (M, K)
        if (reason := cpu_linear.why_not("onednn", rows, weight)) is not None:
            announce("linear", "cpu", "PyTorch", [reason])
            return F.linear(*given)
        return cpu_linear.onednn(rows, weight, bias).view(*x.shape[:-1], weight.shape[0])


def _own(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return cpu_linear.own(x.contiguous(), weight, bias)


class _Own(torch.autograd.Function):
    """`_own` with dx = dy weight, dweight = dy^T x and dbias, the sum of dy over rows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.set_materialize_grads(False)
        return _own(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None) -> tuple[Tensor | None, ...]:
        if dy is None:
            return None, None, None
        x, weight = ctx.saved_tensors
        rows, dy = x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])  # (M, K), (M, F)
        plain = why_not_direct((dy, x, weight)) is not None  # asked to be differentiated, transformed or watched
        of_x, of_weight, of_bias = ctx.needs_input_grad
        dx = dweight = None
        if of_x:
            dx = torch.mm(dy, weight) if plain else cpu_linear.input_gradient(dy.contiguous(), weight)
        if of_weight:
            dweight = torch.mm(dy.t(), rows) if plain else cpu_linear.weight_gradient(dy, rows)
        return None if dx is None else dx.view(x.shape), dweight, dy.sum(0) if of_bias else None


def why_not(x: Tensor, weight: Tensor, bias: Tensor | None) -> str | None:
    """Why PyTorch's function has to serve, whatever the sizes; None where a faster kernel may."""
    if (reason := why_not_direct((x, weight, bias), differentiable=True)) is not None:
        return reason
    if not x.is_cpu:
        return f"tensors are on {x.device.type}"
    if cpu_linear.why_not("own") is not None and (reason := why_not_direct((x, weight, bias))) is not None:
        return reason
    backend = current_backend("linear_gelu")
    return None if backend in ("auto", "cpu") else f"backend {backend!r} has no linear of its own"


def unfit(x: Tensor, weight: Tensor, bias: Tensor | None) -> str | None:
    """What the kernels do not take; PyTorch's function computes it or says what is wrong."""
    if weight.dim() != 2 or x.dim() < 1 or x.shape[-1] != weight.shape[1] or not x.numel() or not weight.numel():
        return "shapes that do not fit, or nothing to do"
    if bias is not None and (bias.shape != weight.shape[:1] or bias.dtype != x.dtype or not bias.is_contiguous()):
        return "a bias of another shape, dtype or layout"
    if x.dtype not in KERNEL_DTYPES or weight.dtype != x.dtype or not weight.is_cpu:
        return "dtypes or devices that differ, or are none of the kernels'"
    return None if weight.is_contiguous() else "a weight that is not dense"
