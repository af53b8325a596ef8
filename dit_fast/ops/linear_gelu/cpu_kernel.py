# SPDX-License-Identifier: Apache-2.0
"""The `cpu` backend of linear_gelu: the library's own kernels where they are faster, else PyTorch's products and GELU.

`cpu_linear` says which. `out=` variants throughout: autocast leaves them alone, so storage dtypes stay what the
operator promised.
"""

from math import prod

import torch
from torch import Tensor

from . import cpu_linear

_gelu = torch.ops.aten.gelu.out


def forward(x: Tensor, weight: Tensor, bias: Tensor, keep: bool) -> tuple[Tensor, Tensor]:
    f, k = weight.shape
    if cpu_linear.why_not("own") is None:
        return torch.ops.dit_fast_native.linear.default(x, weight, bias, True, keep)
    rows = x.reshape(prod(x.shape[:-1]), k)  # (M, K)
    if not keep and cpu_linear.why_not("onednn", rows, weight) is None:
        return cpu_linear.onednn(rows, weight, bias, gelu=True).view(*x.shape[:-1], f), x.new_empty((0, f))
    y = x.new_empty((len(rows), f))
    u = torch.empty_like(y) if keep else y
    if y.numel():
        torch.addmm(bias, rows, weight.t(), out=u)
        _gelu(u, approximate="tanh", out=y)
    return y.view(*x.shape[:-1], f), u if keep else x.new_empty((0, f))


def backward(dy: Tensor, x: Tensor, weight: Tensor, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    rows, dy = x.reshape(u.shape[0], weight.shape[1]), dy.view(u.shape)  # (M, K), (M, F)
    if cpu_linear.why_not("own") is None:
        du, dbias = torch.ops.dit_fast_native.gelu_backward.default(dy, u)
        return cpu_linear.input_gradient(du, weight).view(x.shape), cpu_linear.weight_gradient(du, rows), dbias
    du, dbias = torch.empty_like(u), u.new_empty(u.shape[1])
    torch.ops.aten.gelu_backward.grad_input(dy, u, approximate="tanh", grad_input=du)
    torch.sum(du, 0, out=dbias)
    dx, dweight = torch.empty_like(x), torch.empty_like(weight)
    torch.mm(du, weight, out=dx.view(rows.shape))
    torch.mm(du.t(), rows, out=dweight)
    return dx, dweight, dbias
