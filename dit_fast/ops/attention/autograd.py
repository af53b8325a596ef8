# SPDX-License-Identifier: Apache-2.0
"""The operator `dit_fast::attention`, its fake kernels and its gradient, once for all backends.

q, k, v are (N, T, H, Dh), or q alone is packed (N, T, 3, H, Dh). With S = scale * q k^T, P = softmax(S) and the
log-sum-exp of each row of S, lse (N, H, Tq) float32, saved so that P = exp(S - lse) can be made again:
    dv = P^T dout,   dP = dout v^T,   dS = P * (dP - rowsum(dout * out)),   dq = scale * dS k,   dk = scale * dS^T q
For packed input the first gradient is dqkv (N, T, 3, H, Dh) and the other two have 0 elements.

Queries and keys may first be normalised (`norm`: 0 no, 1 rms, 2 layer) and rotated, in one pass over them whose result
is rounded to storage and made again in the backward. `affine` (4, Dh) float32 holds the norms' q weight, q bias,
k weight, k bias; `rope` (2, T, Dh/2) float32 cos and sin. With u = (x - mean) * rstd (rms: mean = 0) of a row x,
y = u * weight + bias, and dy the gradient of the row rotated back:
    dweight = sum(dy * u),   dbias = sum(dy),   dx = rstd * (g - mean(g) - u * mean(g * u)),   g = dy * weight
(rms: without mean(g)). The fourth gradient is that of `affine`, with 0 elements where it is absent.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Size, Tensor

from .._core import Op
from .heads import new_gradients, unpack
from .libraries import LIBRARIES
from .preference import preference

NORMS = {None: 0, "rms": 1, "layer": 2}
"""What the operator calls the norms."""


def _fake(
    q: Tensor, k: Tensor | None, v: Tensor | None, affine: Tensor | None, rope: Tensor | None,
    scale: float, norm: int, eps: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    q, k, v = unpack(q, k, v)
    n, t, h, dh = q.shape
    return q.new_empty((n, t, h * dh)), q.new_empty((n, h, t), dtype=torch.float32)


def _fake_backward(
    dout: Tensor, q: Tensor, k: Tensor | None, v: Tensor | None, affine: Tensor | None, rope: Tensor | None,
    out: Tensor, lse: Tensor, scale: float, norm: int, eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    return *new_gradients(q, k, v), lse.new_empty(0 if affine is None else affine.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    q, k, v, affine, rope, ctx.scale, ctx.norm, ctx.eps, ctx.backend = inputs
    out, lse = output
    ctx.mark_non_differentiable(lse)
    ctx.save_for_backward(q, k, v, affine, rope, out, lse)


def _gradient(ctx: Any, dout: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    q, k, v, affine, rope, out, lse = ctx.saved_tensors
    dq, dk, dv, daffine = OP.backward(
        dout, q, k, v, affine, rope, out, lse, ctx.scale, ctx.norm, ctx.eps, ctx.backend
    )
    heads = (dq, None, None) if k is None else (dq, dk, dv)
    return (*heads, None if affine is None else daffine, None, None, None, None, None)


def _flops(q: Size, k: Size | None, *rest: object) -> int:
    """q k^T and P v."""
    n, t, h, dh = q[0], q[1], q[-2], q[-1]
    return 4 * n * h * t * (t if k is None else k[1]) * dh


def _backward_flops(dout: Size, q: Size, k: Size | None, *rest: object) -> int:
    """q k^T again, dout v^T, P^T dout, dS k and dS^T q: as PyTorch counts its own fused attention."""
    return 5 * _flops(q, k) // 2


CUDA_WIDTHS = (64, 72)


def _limits(backend: str, tensors: Sequence[Tensor]) -> str | None:
    dh = tensors[0].shape[-1]
    if backend == "triton" and (dh % 8 or dh > 128):
        return f"head dim {dh} is not a multiple of 8 up to 128"
    if backend == "cuda" and dh not in CUDA_WIDTHS:
        return f"head dim {dh} is not among {CUDA_WIDTHS}"
    if backend == "cuda" and tensors[0].dtype == torch.float32:
        return "the CUDA kernels take bfloat16 and float16"
    return None


OP = Op(
    "attention",
    forward="(Tensor q, Tensor? k, Tensor? v, Tensor? affine, Tensor? rope, float scale, int norm, float eps)"
    " -> (Tensor out, Tensor lse)",
    backward="(Tensor dout, Tensor q, Tensor? k, Tensor? v, Tensor? affine, Tensor? rope, Tensor out, Tensor lse,"
    " float scale, int norm, float eps) -> (Tensor dq, Tensor dk, Tensor dv, Tensor daffine)",
    fake=_fake,
    fake_backward=_fake_backward,
    save=_save,
    gradient=_gradient,
    strided=("q", "k", "v"),
    limits=_limits,
    preference=preference,
    libraries={name: why_not for name, (_, why_not) in LIBRARIES.items()},
    flops=(_flops, _backward_flops),
)
