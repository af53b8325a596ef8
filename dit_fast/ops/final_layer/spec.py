# SPDX-License-Identifier: Apache-2.0
"""Cases, inputs and costs of `final_layer`. N batch, A x B patches, D width, P patch size, C channels, M modulated;
L tokens of each sample that are no patches (3 if not said)."""

from collections.abc import Mapping
from typing import Any

from .._core import LAYOUTS, Case, Cost, Maker, Spec
from . import final_layer, reference
from .autograd import OP


def inputs(case: Case, make: Maker) -> dict[str, Any]:
    n, a, b, d, p, c = (case.dims[k] for k in "NABDPC")
    shift, scale = make(n, 2 * d, gain=0.5).chunk(2, dim=1)  # strided views, as the model passes them
    modulated = case.dims["M"]
    return {
        # in-context conditioning leaves tokens behind
        "x": make(n, a * b + case.dims.get("L", 3), d, gain=2.0, offset=0.5)[:, : a * b],
        "shift": shift if modulated else None,
        "scale": scale if modulated else None,
        "weight": make(p * p * c, d, gain=d**-0.5),
        "bias": make(p * p * c, gain=0.5),
        "grid": (a, b),
        "patch_size": p,
    }


def cost(dims: Mapping[str, int], itemsize: int) -> Cost:
    n, a, b, d, p, c, modulated = (dims[k] for k in "NABDPCM")
    tokens, features = n * a * b, p * p * c
    x, image, weight, rows = tokens * d, tokens * features, features * (d + 1), 2 * n * d * modulated
    stats = 8 * tokens * modulated
    return Cost(
        forward_bytes=(x + image + weight + rows) * itemsize + stats,
        backward_bytes=(2 * (x + weight + rows) + image) * itemsize + stats,  # inputs, their gradients; dout
        forward_flops=2 * tokens * d * features,
        backward_flops=4 * tokens * d * features,
    )


def _case(layout: str = "contiguous", *, modulated: int = 1, **dims: int) -> Case:
    name = "-".join(f"{k}{v}" for k, v in dims.items())
    name += "" if modulated else "-modulated-before"
    name += "" if layout == "contiguous" else f"-{layout}"
    return Case(name, {**dims, "M": modulated}, layout)


CASES = (
    _case(N=2, A=1, B=1, D=64, P=2, C=8),
    _case(N=3, A=1, B=7, D=72, P=2, C=8),
    _case(N=2, A=7, B=9, D=384, P=2, C=8),
    _case(N=2, A=7, B=9, D=384, P=2, C=8, modulated=0),
    _case(N=2, A=16, B=16, D=64, P=2, C=8),
    _case(N=2, A=2, B=3, D=768, P=2, C=4),
    _case(N=2, A=3, B=2, D=1024, P=2, C=8),
    _case(N=2, A=7, B=3, D=1152, P=2, C=8),
    _case(N=2, A=2, B=3, D=64, P=4, C=8),
    _case(N=2, A=3, B=2, D=72, P=8, C=8),  # 512 features
    _case(N=2, A=5, B=1, D=71, P=3, C=3),
    _case(N=2, A=5, B=1, D=72, P=3, C=3),  # 27 features
    _case(N=2, A=2, B=5, D=64, P=1, C=16),  # a patch is one pixel
    *(_case(layout, N=3, A=1, B=7, D=72, P=2, C=8) for layout in LAYOUTS[1:]),
    _case(N=0, A=2, B=2, D=64, P=2, C=8),
    _case(N=2, A=0, B=2, D=64, P=2, C=8),
)

SPEC = Spec(
    op=OP,
    function=final_layer,
    reference=reference,
    cases=CASES,
    inputs=inputs,
    gradients=("x", "shift", "scale", "weight", "bias"),
    cost=cost,
    bench=lambda n: (
        Case(f"XL/2, N={n}", {"N": n, "A": 16, "B": 16, "D": 1152, "P": 2, "C": 8, "M": 1, "L": 0}),
    ),
)
