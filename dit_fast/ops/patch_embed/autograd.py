# SPDX-License-Identifier: Apache-2.0
"""The operator `dit_fast::patch_embed`, its fake kernels and its gradient, once for all backends.

With patch(n, t) the C*p*p pixels of patch t of sample n, in the order of weight's last three dimensions:
    dweight = sum_NT dout[n, t] patch(n, t)^T,   dbias = sum_NT dout[n, t],   dpos[t] = sum_N dout[n, t]
    dx: patch(n, t) receives weight^T dout[n, t]; patches do not overlap, so no sum over them
Sums are float32 in an order that depends on shapes only. `needed` says which of (dx, dweight, dbias, dpos) to
compute, as aten's output_mask does; the others come back with 0 elements. In training x and pos need none.
"""

from collections.abc import Sequence
from math import prod
from typing import Any

from torch import Size, Tensor

from .._core import Op


def _fake(x: Tensor, weight: Tensor, bias: Tensor | None, pos: Tensor) -> Tensor:
    return x.new_empty((x.shape[0], *pos.shape))


def _fake_backward(
    dout: Tensor, x: Tensor, weight: Tensor, needed: list[bool]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    shapes = (x.shape, weight.shape, weight.shape[:1], dout.shape[1:])
    dx, dweight, dbias, dpos = (x.new_empty(s if n else (0,)) for s, n in zip(shapes, needed, strict=True))
    return dx, dweight, dbias, dpos


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, _, _, ctx.backend = inputs
    ctx.save_for_backward(x, weight)


def _gradient(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
    needed = list(ctx.needs_input_grad[:4])
    gradients = OP.backward(dout, *ctx.saved_tensors, needed, ctx.backend)
    return (*(g if n else None for g, n in zip(gradients, needed, strict=True)), None)


def _limits(backend: str, tensors: Sequence[Tensor]) -> str | None:
    """The CUDA kernels number tokens in 32 bits, up to the end of the last tile of 64."""
    x, weight = tensors[:2]
    n, (height, width), p = x.shape[0], x.shape[-2:], weight.shape[-1]
    tokens, most = n * (height // p) * (width // p), 2**31 - 65
    if backend == "cuda" and tokens > most:
        return f"there may be at most {most} patches, got {tokens}"
    return None


def _flops(x: Size, weight: Size, *rest: object) -> int:
    return 2 * prod(x) * weight[0]


def _backward_flops(dout: Size, x: Size, weight: Size, needed: Sequence[bool], *rest: object) -> int:
    return sum(needed[:2]) * _flops(x, weight)


OP = Op(
    "patch_embed",
    forward="(Tensor x, Tensor weight, Tensor? bias, Tensor pos) -> Tensor",
    backward="(Tensor dout, Tensor x, Tensor weight, bool[4] needed)"
    " -> (Tensor dx, Tensor dweight, Tensor dbias, Tensor dpos)",
    fake=_fake,
    fake_backward=_fake_backward,
    save=_save,
    gradient=_gradient,
    limits=_limits,
    flops=(_flops, _backward_flops),
)
