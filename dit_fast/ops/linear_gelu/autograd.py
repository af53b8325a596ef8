# SPDX-License-Identifier: Apache-2.0
"""The operator `dit_fast::linear_gelu`, its fake kernels and its gradient, once for all backends.

x is (..., K) of M rows in all, weight (F, K), bias (F,). The forward keeps u = x weight^T + bias, (M, F) in the
storage dtype, where `keep` asks for it, else 0 rows. With z = sqrt(2/pi) (u + 0.044715 u^3), z' = dz/du and
s = sigmoid(2z):
    y  = u s                        which is 0.5 u (1 + tanh z)
    du = dy (s + 2 u s (1 - s) z')
    dx = du weight,   dweight = du^T x,   dbias = sum of du over the M rows, in float32
"""

from math import prod
from typing import Any

from torch import Size, Tensor

from .._core import Op


def _fake(x: Tensor, weight: Tensor, bias: Tensor, keep: bool) -> tuple[Tensor, Tensor]:
    f = weight.shape[0]
    rows = prod(x.shape[:-1]) if keep else 0  # Size.numel would make a symbolic batch a number
    return x.new_empty((*x.shape[:-1], f)), x.new_empty((rows, f))


def _fake_backward(dy: Tensor, x: Tensor, weight: Tensor, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), weight.new_empty(weight.shape), weight.new_empty(weight.shape[:1])


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, _, ctx.keep, ctx.backend = inputs
    _, u = output
    ctx.mark_non_differentiable(u)
    ctx.save_for_backward(x, weight, u)


def _gradient(ctx: Any, dy: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    if not ctx.keep:
        raise RuntimeError("linear_gelu: the forward ran with keep=False, so it has no gradient")
    dx, dweight, dbias = OP.backward(dy, *ctx.saved_tensors, ctx.backend)
    return dx, dweight, dbias, None, None


def _flops(x: Size, weight: Size, *rest: object) -> int:
    return 2 * prod(x) * weight[0]


def _backward_flops(dy: Size, x: Size, weight: Size, *rest: object) -> int:
    return 2 * _flops(x, weight)


OP = Op(
    "linear_gelu",
    forward="(Tensor x, Tensor weight, Tensor bias, bool keep) -> (Tensor y, Tensor u)",
    backward="(Tensor dy, Tensor x, Tensor weight, Tensor u) -> (Tensor dx, Tensor dweight, Tensor dbias)",
    fake=_fake,
    fake_backward=_fake_backward,
    save=_save,
    gradient=_gradient,
    cpu_module="cpu_kernel",
    about={"cpu": "C++ (AVX2), oneDNN (AVX-512)", "triton": "cuBLASLt, Triton's gradient of GELU", "cuda": ""},
    flops=(_flops, _backward_flops),
)
