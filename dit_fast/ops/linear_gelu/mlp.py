# SPDX-License-Identifier: Apache-2.0
"""A transformer's MLP: linear_gelu and linear, which keep less for the gradient than one by one."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .._core import autocast, current_backend, why_not_direct
from .._core.backends import announce
from . import cpu_linear, linear_gelu
from .linear import linear, unfit
from .linear import why_not as why_no_kernel


def mlp(x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor | None = None) -> Tensor:
    """y = gelu(x weight1^T + bias1) weight2^T + bias2, as linear(linear_gelu(x, weight1, bias1), weight2, bias2).

    For a gradient these two keep the (..., F) values before the GELU and those behind it. Where the library's own
    kernels multiply on a CPU (see `linear`), only the former are kept, and the backward finds the latter again.

    Args:
        x: (..., K) floating point.
        weight1: (F, K), same dtype and device as x.
        bias1: (F,), likewise.
        weight2: (D, F), likewise.
        bias2: (D,), likewise, or None.

    Returns:
        (..., D) in x's dtype; under autocast in its dtype.

    Raises:
        ValueError, BackendUnavailable: as linear_gelu does.
    """
    given = x, weight1, bias1, weight2, bias2
    if why_not(*given) is None:
        x, weight1, bias1, weight2, bias2 = autocast(*given, matmul=True)
        if unfit(x, weight1, bias1) is None and unfit(weight1.t(), weight2, bias2) is None:
            if current_backend("linear_gelu") == "auto":
                announce("linear_gelu", "cpu", "cpu", [])
            return _Own.apply(x, weight1, bias1, weight2, bias2)
    return linear(linear_gelu(*given[:3]), *given[3:])


def why_not(x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor | None) -> str | None:
    """Why it has to be the two ops, whatever the sizes."""
    given = x, weight1, bias1, weight2, bias2
    if not all(isinstance(tensor, Tensor) for tensor in given[:4]):
        return "an argument is no tensor"
    if not torch.is_grad_enabled() or not any(tensor is not None and tensor.requires_grad for tensor in given):
        return "no gradient is wanted, so nothing is kept"
    return why_no_kernel(x, weight1, bias1) or why_no_kernel(x, weight2, bias2)


class _Own(torch.autograd.Function):
    """With u = x weight1^T + bias1, which is kept, y = gelu(u) and dout the gradient of the result:

    du = gelu'(u) (dout weight2),   dx = du weight1,   dweight1 = du^T x,   dweight2 = dout^T y
    and dbias1 and dbias2 the sums of du and dout over rows.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor | None
    ) -> Tensor:
        y, u = torch.ops.dit_fast_native.linear.default(x.contiguous(), weight1, bias1, True, True)
        ctx.save_for_backward(x, weight1, bias1, weight2, u)
        ctx.set_materialize_grads(False)
        return cpu_linear.own(y, weight2, bias2)

    @staticmethod
    def backward(ctx: Any, dout: Tensor | None) -> tuple[Tensor | None, ...]:
        if dout is None:
            return (None,) * 5
        x, weight1, bias1, weight2, u = ctx.saved_tensors
        rows, dout = x.reshape(-1, x.shape[-1]), dout.reshape(-1, dout.shape[-1])  # (M, K), (M, D)
        of_x, of_weight1, _, of_weight2, of_bias2 = ctx.needs_input_grad
        dx = dweight1 = dbias1 = dweight2 = None
        if why_not_direct((dout, x, weight1, bias1, weight2)) is not None:  # differentiated, transformed or watched
            u = torch.addmm(bias1, rows, weight1.t())
            du = torch.ops.aten.gelu_backward(torch.mm(dout, weight2), u, approximate="tanh")
            dx, dweight1, dbias1 = torch.mm(du, weight1), torch.mm(du.t(), rows), du.sum(0)
            dweight2 = torch.mm(dout.t(), F.gelu(u, approximate="tanh"))
        else:
            du, y, dbias1 = cpu_linear.hidden_gradient(dout.contiguous(), weight2, u)
            if of_weight2:
                dweight2 = cpu_linear.weight_gradient(dout, y)
            del y  # its memory may serve the next
            if of_x:
                dx = cpu_linear.input_gradient(du, weight1)
            if of_weight1:
                dweight1 = cpu_linear.weight_gradient(du, rows)
        return None if dx is None else dx.view(x.shape), dweight1, dbias1, dweight2, dout.sum(0) if of_bias2 else None
