# SPDX-License-Identifier: Apache-2.0
"""Cases, inputs and costs of `patch_embed`. N batch, C channels, H x W pixels, P patch size, D width, B bias or not."""

from collections.abc import Mapping
from typing import Any

from .._core import LAYOUTS, Case, Cost, Maker, Spec
from . import patch_embed, reference
from .autograd import OP


def inputs(case: Case, make: Maker) -> dict[str, Any]:
    n, c, h, w, p, d = (case.dims[k] for k in "NCHWPD")
    return {
        "x": make(n, c, h, w),
        "weight": make(d, c, p, p, gain=(c * p * p) ** -0.5),
        "bias": make(d, gain=0.5) if case.dims["B"] else None,
        "pos": make((h // p) * (w // p), d),
    }


def cost(dims: Mapping[str, int], itemsize: int) -> Cost:
    n, c, h, w, p, d = (dims[k] for k in "NCHWPD")
    tokens = (h // p) * (w // p)
    image, weight, out = n * c * h * w, d * (c * p * p + dims["B"]), n * tokens * d
    return Cost(
        forward_bytes=(image + weight + tokens * d + out) * itemsize,
        backward_bytes=(out + 2 * (image + weight) + tokens * d) * itemsize,  # dout, x, weight; all four gradients
        forward_flops=2 * image * d,
        backward_flops=4 * image * d,
    )


def _case(layout: str = "contiguous", *, bias: int = 1, **dims: int) -> Case:
    name = "-".join(f"{k}{v}" for k, v in dims.items())
    name += "" if bias else "-no-bias"
    name += "" if layout == "contiguous" else f"-{layout}"
    return Case(name, {**dims, "B": bias}, layout)


CASES = (
    _case(N=2, C=4, H=2, W=2, P=2, D=64),  # T = 1
    _case(N=3, C=4, H=2, W=14, P=2, D=72),  # T = 7
    _case(N=2, C=4, H=14, W=18, P=2, D=384),  # T = 63
    _case(N=2, C=4, H=32, W=32, P=2, D=64),  # T = 256
    _case(N=2, C=4, H=4, W=6, P=2, D=768, bias=0),
    _case(N=2, C=4, H=4, W=6, P=2, D=1024),
    _case(N=2, C=4, H=8, W=12, P=4, D=64),
    _case(N=2, C=3, H=24, W=16, P=8, D=72),  # 192 pixels a patch
    _case(N=2, C=1, H=3, W=7, P=1, D=1152),  # a patch is one pixel
    _case(N=2, C=16, H=6, W=9, P=3, D=71),  # an odd patch, an odd width
    *(_case(layout, N=3, C=4, H=2, W=14, P=2, D=72) for layout in LAYOUTS[1:]),
    _case(N=0, C=4, H=4, W=4, P=2, D=64),
)

SPEC = Spec(
    op=OP,
    function=patch_embed,
    reference=reference,
    cases=CASES,
    inputs=inputs,
    gradients=("x", "weight", "bias", "pos"),
    cost=cost,
    bench=lambda n: (Case(f"XL/2, N={n}", {"N": n, "C": 4, "H": 32, "W": 32, "P": 2, "D": 1152, "B": 1}),),
)
