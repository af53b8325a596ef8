# SPDX-License-Identifier: Apache-2.0
"""Cases, inputs and costs of `gated_residual_adaln`. N batch, T tokens, D width."""

from collections.abc import Mapping
from typing import Any

from .._core import LAYOUTS, Case, Cost, Maker, Spec
from . import gated_residual_adaln, reference
from .autograd import OP


def cases() -> tuple[Case, ...]:
    """The sizes of `token_cases` with fewer tokens, each a program of the interpreted Triton kernel."""
    sizes = [(2, 1, 64), (3, 7, 72), (1, 63, 72), (2, 67, 384), (1, 256, 64), (2, 5, 71)]
    sizes += [(2, 7, d) for d in (768, 1024, 1152)]
    plain = [Case(f"N{n}-T{t}-D{d}", {"N": n, "T": t, "D": d}) for n, t, d in sizes]
    laid = [Case(f"N3-T7-D72-{layout}", {"N": 3, "T": 7, "D": 72}, layout) for layout in LAYOUTS[1:]]
    empty = [Case("empty-batch", {"N": 0, "T": 4, "D": 64}), Case("no-tokens", {"N": 2, "T": 0, "D": 64})]
    return (*plain, *laid, *empty)


def inputs(case: Case, make: Maker) -> dict[str, Any]:
    n, t, d = (case.dims[k] for k in "NTD")
    rows = make(n, 6 * d, gain=0.5).chunk(6, dim=1)  # strided views, as the model passes them
    return {
        "x": make(n, t, d, gain=2.0, offset=0.5),
        "y": make(n, t, d),
        "gate": rows[2],
        "shift": rows[3],
        "scale": rows[4],
    }


def cost(dims: Mapping[str, int], itemsize: int) -> Cost:
    n, t, d = (dims[k] for k in "NTD")
    tokens, rows, stats = n * t * d * itemsize, n * d * itemsize, n * t * 8
    return Cost(
        forward_bytes=4 * tokens + 3 * rows + stats,  # x, y; x_new, h
        backward_bytes=6 * tokens + 5 * rows + stats,  # dx_new, dh, x_new, y; dx, dy
    )


SPEC = Spec(
    op=OP,
    function=gated_residual_adaln,
    reference=reference,
    cases=cases(),
    inputs=inputs,
    gradients=("x", "y", "gate", "shift", "scale"),
    cost=cost,
    bench=lambda n: (Case(f"XL/2, N={n}", {"N": n, "T": 256, "D": 1152}),),
)
