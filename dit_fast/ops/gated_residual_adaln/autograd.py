# SPDX-License-Identifier: Apache-2.0
"""The operator `dit_fast::gated_residual_adaln`, its fake kernels and its gradient, once for all backends.

With xhat = (x_new - mean) * rstd over the D features of a token and g = dh * (1 + scale):
    dx     = dx_new + rstd * (g - mean_D(g) - xhat * mean_D(g * xhat)),   dy = dx * gate
    dgate  = sum_T(dx * y),   dshift = sum_T(dh),   dscale = sum_T(dh * xhat)     all summed in float32
dy and dgate take dx before it is rounded to storage, which eager PyTorch cannot.

Gradients are not materialised: where x_new is used no further (the final layer), dx_new is None and the
kernel takes it as zero without reading anything.
"""

from typing import Any

import torch
from torch import Tensor

from .._core import Op, row_limits


def _fake(
    x: Tensor, y: Tensor, gate: Tensor, shift: Tensor, scale: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    stats = x.new_empty(x.shape[:2], dtype=torch.float32)
    return x.new_empty(x.shape), x.new_empty(x.shape), stats, torch.empty_like(stats)


def _fake_backward(
    dx_new: Tensor | None,
    dh: Tensor,
    x_new: Tensor,
    y: Tensor,
    gate: Tensor,
    scale: Tensor,
    mean: Tensor,
    rstd: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    dx, dy = x_new.new_empty(x_new.shape), y.new_empty(y.shape)
    dgate, dshift, dscale = (scale.new_empty(scale.shape) for _ in range(3))
    return dx, dy, dgate, dshift, dscale


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, y, gate, _, scale, _, ctx.backend = inputs
    x_new, _, mean, rstd = output
    ctx.mark_non_differentiable(mean, rstd)
    ctx.save_for_backward(x_new, y, gate, scale, mean, rstd)


def _gradient(ctx: Any, dx_new: Tensor | None, dh: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    if dh is None:  # h was not used: nobody's forward, so plain zeros will do
        dh = torch.zeros_like(ctx.saved_tensors[0])
    dx, dy, dgate, dshift, dscale = OP.backward(dx_new, dh, *ctx.saved_tensors, ctx.backend)
    return dx, dy, dgate, dshift, dscale, None, None


OP = Op(
    "gated_residual_adaln",
    forward="(Tensor x, Tensor y, Tensor gate, Tensor shift, Tensor scale, float eps)"
    " -> (Tensor x_new, Tensor h, Tensor mean, Tensor rstd)",
    backward="(Tensor? dx_new, Tensor dh, Tensor x_new, Tensor y, Tensor gate, Tensor scale, Tensor mean,"
    " Tensor rstd) -> (Tensor dx, Tensor dy, Tensor dgate, Tensor dshift, Tensor dscale)",
    fake=_fake,
    fake_backward=_fake_backward,
    save=_save,
    gradient=_gradient,
    strided=("gate", "shift", "scale"),
    limits=row_limits,
)
