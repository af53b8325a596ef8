# SPDX-License-Identifier: Apache-2.0
"""Cases, inputs and costs of `adaln`. N batch, T tokens, D width."""

from collections.abc import Mapping
from typing import Any

from .._core import Case, Cost, Maker, Spec, token_cases
from . import adaln, reference
from .autograd import OP


def inputs(case: Case, make: Maker) -> dict[str, Any]:
    n, t, d = (case.dims[k] for k in "NTD")
    shift, scale = make(n, 6 * d, gain=0.5).chunk(6, dim=1)[3:5]  # strided views, as the model passes them
    return {"x": make(n, t, d, gain=2.0, offset=0.5), "shift": shift, "scale": scale}


def cost(dims: Mapping[str, int], itemsize: int) -> Cost:
    n, t, d = (dims[k] for k in "NTD")
    tokens, rows, stats = n * t * d * itemsize, n * d * itemsize, n * t * 8
    return Cost(
        forward_bytes=2 * tokens + 2 * rows + stats,  # x; h
        backward_bytes=3 * tokens + 3 * rows + stats,  # dh, x; dx
    )


SPEC = Spec(
    op=OP,
    function=adaln,
    reference=reference,
    cases=token_cases(),
    inputs=inputs,
    gradients=("x", "shift", "scale"),
    cost=cost,
    bench=lambda n: (Case(f"XL/2, N={n}", {"N": n, "T": 256, "D": 1152}),),
)
