# SPDX-License-Identifier: Apache-2.0
"""The `cpu` backend of linear_gelu: PyTorch's own products and GELU, the latter in place where u is not kept.

`out=` variants throughout: autocast leaves them alone, so storage dtypes stay what the operator promised.
"""

import torch
from torch import Tensor

_gelu = torch.ops.aten.gelu.out
_gelu_backward = torch.ops.aten.gelu_backward.grad_input


def forward(x: Tensor, weight: Tensor, bias: Tensor, keep: bool) -> tuple[Tensor, Tensor]:
    f, k = weight.shape
    y = x.new_empty((*x.shape[:-1], f))
    rows = y.view(-1, f) if y.numel() else y.new_empty((0, f))  # (M, F)
    u = torch.empty_like(rows) if keep else rows
    if rows.numel():
        torch.addmm(bias, x.view(-1, k), weight.t(), out=u)
        _gelu(u, approximate="tanh", out=rows)
    return y, u if keep else x.new_empty((0, f))


def backward(dy: Tensor, x: Tensor, weight: Tensor, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    f, k = weight.shape
    dx, dweight, dbias = x.new_empty(x.shape), weight.new_empty((f, k)), weight.new_empty(f)
    rows = x.reshape(u.shape[0], k)  # (M, K)
    du = torch.empty_like(u)
    _gelu_backward(dy.view(u.shape), u, approximate="tanh", grad_input=du)
    torch.mm(du, weight, out=dx.view(rows.shape))
    torch.mm(du.t(), rows, out=dweight)
    torch.sum(du, 0, out=dbias)
    return dx, dweight, dbias
