# SPDX-License-Identifier: Apache-2.0
"""Cases, inputs and costs of `linear_gelu`. N batch, T tokens (M = N*T rows), K inputs, F outputs."""

from collections.abc import Mapping
from math import prod
from typing import Any

from .._core import LAYOUTS, Case, Cost, Maker, Spec
from . import linear_gelu, reference
from .autograd import OP


def cases() -> tuple[Case, ...]:
    """Ragged T, the models' widths as K, an F that fits no tile, memory layouts, nothing."""
    sizes = [(2, 1, 64, 40), (3, 7, 72, 288), (2, 63, 384, 96), (2, 256, 64, 72), (2, 7, 1152, 144), (2, 5, 71, 37)]
    plain = [Case(f"N{n}-T{t}-K{k}-F{f}", {"N": n, "T": t, "K": k, "F": f}) for n, t, k, f in sizes]
    small = {"N": 3, "T": 7, "K": 72, "F": 80}
    laid = [Case(f"N3-T7-K72-F80-{layout}", small, layout) for layout in LAYOUTS[1:]]
    empty = [
        Case("empty-batch", {"N": 0, "T": 4, "K": 64, "F": 32}),
        Case("no-tokens", {"N": 2, "T": 0, "K": 64, "F": 32}),
    ]
    return (*plain, *laid, *empty)


def inputs(case: Case, make: Maker) -> dict[str, Any]:
    n, t, k, f = (case.dims[d] for d in "NTKF")
    return {"x": make(n, t, k), "weight": make(f, k, gain=2.0 * k**-0.5), "bias": make(f, gain=0.5)}


def cost(dims: Mapping[str, int], itemsize: int) -> Cost:
    n, t, k, f = (dims[d] for d in "NTKF")
    m = n * t
    x, weight, y, bias = (prod(shape) * itemsize for shape in ((m, k), (f, k), (m, f), (f,)))
    return Cost(
        forward_bytes=x + weight + bias + y,  # x, weight, bias; y (and u, as large as y, where a gradient follows)
        backward_bytes=2 * x + 2 * weight + bias + 2 * y,  # dy, u, x, weight; dx, dweight, dbias
        forward_flops=2 * m * k * f,
        backward_flops=4 * m * k * f,
    )


SPEC = Spec(
    op=OP,
    function=linear_gelu,
    reference=reference,
    cases=cases(),
    inputs=inputs,
    gradients=("x", "weight", "bias"),
    cost=cost,
    bench=lambda n: (Case(f"XL/2, N={n}", {"N": n, "T": 256, "K": 1152, "F": 4608}),),
)
