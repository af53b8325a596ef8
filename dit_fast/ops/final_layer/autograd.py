# SPDX-License-Identifier: Apache-2.0
"""The operator `dit_fast::final_layer`, its fake kernels and its gradient, once for all backends.

With dy (N, T, O) the image's gradient in the order of tokens and features, xhat = (x - mean) * rstd,
h = xhat * (1 + scale) + shift recomputed, dh = dy weight and g = dh * (1 + scale):
    dweight = sum_NT dy^T h,   dbias = sum_NT dy,   dshift = sum_T dh,   dscale = sum_T dh * xhat
    dx = rstd * (g - mean_D(g) - xhat * mean_D(g * xhat))
Sums are float32 in an order that depends on shapes only. Without shift and scale h = x and dx = dh; mean, rstd,
dshift and dscale then have 0 elements.
"""

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Size, Tensor

from .._core import Op


def _fake(
    x: Tensor,
    shift: Tensor | None,
    scale: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    height: int,
    width: int,
    patch: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    n, c = x.shape[0], weight.shape[0] // (patch * patch)
    stats = x.new_empty((0,) if scale is None else x.shape[:2], dtype=torch.float32)
    return x.new_empty((n, c, height * patch, width * patch)), stats, torch.empty_like(stats)


def _fake_backward(
    dout: Tensor,
    x: Tensor,
    shift: Tensor | None,
    scale: Tensor | None,
    weight: Tensor,
    mean: Tensor,
    rstd: Tensor,
    height: int,
    width: int,
    patch: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    rows = (0,) if scale is None else scale.shape
    dx, dweight, dbias = x.new_empty(x.shape), weight.new_empty(weight.shape), weight.new_empty(weight.shape[:1])
    return dx, x.new_empty(rows), x.new_empty(rows), dweight, dbias


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, shift, scale, weight, _, *ctx.layout, _, ctx.backend = inputs
    _, mean, rstd = output
    ctx.mark_non_differentiable(mean, rstd)
    ctx.save_for_backward(x, shift, scale, weight, mean, rstd)


def _gradient(ctx: Any, dout: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    dx, dshift, dscale, dweight, dbias = OP.backward(dout, *ctx.saved_tensors, *ctx.layout, ctx.backend)
    modulated = ctx.saved_tensors[2] is not None
    return (dx, dshift if modulated else None, dscale if modulated else None, dweight, dbias, *(None,) * 5)


MAX_FINAL_BYTES = 8192
"""A block holds 16 tokens of dh and dy in shared memory, 163 KB on sm_80 (csrc/ops/final_layer/final_layer.cu)."""


def _limits(backend: str, tensors: Sequence[Tensor]) -> str | None:
    """For x (N, T, D) and weight (O, D): D is a multiple of 8, and D + O elements have at most 8 KiB."""
    if backend != "cuda":
        return None
    (features, d), most = tensors[1].shape, MAX_FINAL_BYTES // tensors[1].dtype.itemsize
    if d % 8:
        return f"D must be a multiple of 8, got {d}"
    if d + features > most:
        return f"D and the rows of `weight` must be at most {most} together in {tensors[1].dtype}, got {d} + {features}"
    return None


def _flops(x: Size, shift: Size | None, scale: Size | None, weight: Size, *rest: object) -> int:
    return 2 * prod(x) * weight[0]


def _backward_flops(dout: Size, x: Size, shift: Size | None, scale: Size | None, weight: Size, *rest: object) -> int:
    return 2 * _flops(x, shift, scale, weight)


OP = Op(
    "final_layer",
    forward="(Tensor x, Tensor? shift, Tensor? scale, Tensor weight, Tensor bias, SymInt height, SymInt width,"
    " SymInt patch, float eps) -> (Tensor out, Tensor mean, Tensor rstd)",
    backward="(Tensor dout, Tensor x, Tensor? shift, Tensor? scale, Tensor weight, Tensor mean, Tensor rstd,"
    " SymInt height, SymInt width, SymInt patch)"
    " -> (Tensor dx, Tensor dshift, Tensor dscale, Tensor dweight, Tensor dbias)",
    fake=_fake,
    fake_backward=_fake_backward,
    save=_save,
    gradient=_gradient,
    strided=("shift", "scale"),
    limits=_limits,
    flops=(_flops, _backward_flops),
)
