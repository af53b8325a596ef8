# SPDX-License-Identifier: Apache-2.0
"""The operator `dit_fast::adaln`, its fake kernels and its gradient, once for all backends.

With xhat = (x - mean) * rstd over the D features of a token and g = dh * (1 + scale):
    dx     = rstd * (g - mean_D(g) - xhat * mean_D(g * xhat))
    dshift = sum_T(dh),   dscale = sum_T(dh * xhat)          both summed in float32
"""

from typing import Any

import torch
from torch import Tensor

from .._core import Op, row_limits


def _fake(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    stats = x.new_empty(x.shape[:2], dtype=torch.float32)
    return x.new_empty(x.shape), stats, torch.empty_like(stats)


def _fake_backward(
    dh: Tensor, x: Tensor, scale: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), scale.new_empty(scale.shape), scale.new_empty(scale.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, _, scale, _, ctx.backend = inputs
    _, mean, rstd = output
    ctx.mark_non_differentiable(mean, rstd)
    ctx.save_for_backward(x, scale, mean, rstd)


def _gradient(ctx: Any, dh: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    dx, dshift, dscale = OP.backward(dh, *ctx.saved_tensors, ctx.backend)
    return dx, dshift, dscale, None, None


OP = Op(
    "adaln",
    forward="(Tensor x, Tensor shift, Tensor scale, float eps) -> (Tensor h, Tensor mean, Tensor rstd)",
    backward="(Tensor dh, Tensor x, Tensor scale, Tensor mean, Tensor rstd)"
    " -> (Tensor dx, Tensor dshift, Tensor dscale)",
    fake=_fake,
    fake_backward=_fake_backward,
    save=_save,
    gradient=_gradient,
    strided=("shift", "scale"),
    limits=row_limits,
)
