# SPDX-License-Identifier: Apache-2.0
"""The operator `dit_fast::attention`, its fake kernels and its gradient, once for all backends.

q, k, v are (N, T, H, Dh), or q alone is packed (N, T, 3, H, Dh). With S = scale * q k^T, P = softmax(S) and the
log-sum-exp of each row of S, lse (N, H, Tq) float32, saved so that P = exp(S - lse) can be made again:
    dv = P^T dout,   dP = dout v^T,   dS = P * (dP - rowsum(dout * out)),   dq = scale * dS k,   dk = scale * dS^T q
For packed input the first gradient is dqkv (N, T, 3, H, Dh) and the other two have 0 elements.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .._core import Op
from .heads import new_gradients, unpack


def _fake(q: Tensor, k: Tensor | None, v: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    q, k, v = unpack(q, k, v)
    n, t, h, dh = q.shape
    return q.new_empty((n, t, h * dh)), q.new_empty((n, h, t), dtype=torch.float32)


def _fake_backward(
    dout: Tensor, q: Tensor, k: Tensor | None, v: Tensor | None, out: Tensor, lse: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    return new_gradients(q, k, v)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    q, k, v, ctx.scale, ctx.backend = inputs
    out, lse = output
    ctx.mark_non_differentiable(lse)
    ctx.save_for_backward(q, k, v, out, lse)


def _gradient(ctx: Any, dout: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    q, k, v, out, lse = ctx.saved_tensors
    dq, dk, dv = OP.backward(dout, q, k, v, out, lse, ctx.scale, ctx.backend)
    return (dq, None, None, None, None) if k is None else (dq, dk, dv, None, None)


def _limits(backend: str, tensors: Sequence[Tensor]) -> str | None:
    dh = tensors[0].shape[-1]
    if backend in ("triton", "cuda") and (dh % 8 or dh > 128):
        return f"head dim {dh} is not a multiple of 8 up to 128"
    return None


OP = Op(
    "attention",
    forward="(Tensor q, Tensor? k, Tensor? v, float scale) -> (Tensor out, Tensor lse)",
    backward="(Tensor dout, Tensor q, Tensor? k, Tensor? v, Tensor out, Tensor lse, float scale)"
    " -> (Tensor dq, Tensor dk, Tensor dv)",
    fake=_fake,
    fake_backward=_fake_backward,
    save=_save,
    gradient=_gradient,
    strided=("q", "k", "v"),
    limits=_limits,
    cpu_module="cpu_kernel",
)
