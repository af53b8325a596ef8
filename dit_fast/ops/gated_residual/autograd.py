# SPDX-License-Identifier: Apache-2.0
"""The operator `dit_fast::gated_residual`, its fake kernels and its gradient, once for all backends.

    dx = dout,   dy = dout * gate,   dgate = sum_T(dout * y)          summed in float32

dx is the incoming gradient itself, so that the backward kernel computes dy and dgate only.
"""

from typing import Any

from torch import Tensor

from .._core import Op, row_limits


def _fake(x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
    return x.new_empty(x.shape)


def _fake_backward(dout: Tensor, y: Tensor, gate: Tensor) -> tuple[Tensor, Tensor]:
    return y.new_empty(y.shape), gate.new_empty(gate.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, y, gate, ctx.backend = inputs
    ctx.save_for_backward(y, gate)


def _gradient(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
    dy, dgate = OP.backward(dout, *ctx.saved_tensors, ctx.backend)
    return dout, dy, dgate, None


OP = Op(
    "gated_residual",
    forward="(Tensor x, Tensor y, Tensor gate) -> Tensor",
    backward="(Tensor dout, Tensor y, Tensor gate) -> (Tensor dy, Tensor dgate)",
    fake=_fake,
    fake_backward=_fake_backward,
    save=_save,
    gradient=_gradient,
    strided=("gate",),
    limits=row_limits,
)
