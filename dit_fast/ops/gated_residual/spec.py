# SPDX-License-Identifier: Apache-2.0
"""Cases, inputs and costs of `gated_residual`. N batch, T tokens, D width."""

from collections.abc import Mapping
from typing import Any

from .._core import Case, Cost, Maker, Spec, token_cases
from . import gated_residual, reference
from .autograd import OP


def inputs(case: Case, make: Maker) -> dict[str, Any]:
    n, t, d = (case.dims[k] for k in "NTD")
    gate = make(n, 6 * d, gain=0.5).chunk(6, dim=1)[2]  # a strided view, as the model passes it
    return {"x": make(n, t, d, gain=2.0, offset=0.5), "y": make(n, t, d), "gate": gate}


def cost(dims: Mapping[str, int], itemsize: int) -> Cost:
    n, t, d = (dims[k] for k in "NTD")
    tokens, rows = n * t * d * itemsize, n * d * itemsize
    return Cost(
        forward_bytes=3 * tokens + rows,  # x, y; out
        backward_bytes=3 * tokens + 2 * rows,  # dout, y; dy
    )


SPEC = Spec(
    op=OP,
    function=gated_residual,
    reference=reference,
    cases=token_cases(),
    inputs=inputs,
    gradients=("x", "y", "gate"),
    cost=cost,
    bench=lambda n: (Case(f"XL/2, N={n}", {"N": n, "T": 256, "D": 1152}),),
)
