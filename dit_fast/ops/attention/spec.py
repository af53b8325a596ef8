# SPDX-License-Identifier: Apache-2.0
"""Cases, inputs and costs of `attention`. N batch, T queries, S keys (absent: packed), H heads, Dh head width;
norm 1 rms, 2 layer; affine 1: its weights (and biases) are given; rope 1: heads are turned."""

from collections.abc import Mapping
from typing import Any

import torch

from .._core import LAYOUTS, Case, Cost, Maker, Spec
from . import attention, reference
from .autograd import OP


def _case(layout: str = "contiguous", **dims: int) -> Case:
    name = "-".join(f"{k}{v}" for k, v in dims.items())
    return Case(name if layout == "contiguous" else f"{name}-{layout}", dims, layout)


def cases() -> tuple[Case, ...]:
    """Head widths of the models (64, 72) and others, ragged T, two keys as in cross-attention, layouts, nothing.

    One key alone has the gradients dq = dk = 0, to which no distance is relative: tests/ops/test_attention.py.
    """
    packed = [
        _case(N=2, T=1, H=2, Dh=64),
        _case(N=3, T=7, H=2, Dh=72),
        _case(N=1, T=63, H=2, Dh=72),
        _case(N=1, T=130, H=1, Dh=64),
        _case(N=2, T=17, H=3, Dh=8),
        _case(N=2, T=9, H=2, Dh=80),
        _case(N=1, T=65, H=1, Dh=96),
        _case(N=1, T=33, H=1, Dh=104),
        _case(N=1, T=65, H=1, Dh=128),
    ]
    separate = [_case(N=2, T=63, S=2, H=1, Dh=72), _case(N=2, T=5, S=130, H=1, Dh=40)]
    laid = [_case(layout, N=2, T=7, S=5, H=2, Dh=72) for layout in LAYOUTS[1:]]
    laid += [_case(layout, N=2, T=7, H=2, Dh=72) for layout in LAYOUTS[1:]]
    prepared = [
        _case(N=2, T=7, H=2, Dh=72, norm=1, affine=1, rope=1),
        _case(N=2, T=33, H=1, Dh=64, norm=2, affine=1),
        _case(N=2, T=5, H=3, Dh=72, norm=2),
        _case(N=2, T=9, H=1, Dh=40, rope=1),
        _case(N=2, T=17, S=5, H=2, Dh=72, norm=1, affine=1),
        _case("strided", N=2, T=7, S=7, H=2, Dh=64, norm=2, affine=1, rope=1),
        _case("misaligned", N=2, T=7, H=2, Dh=72, norm=1, affine=1, rope=1),
    ]
    empty = [
        Case("empty-batch", {"N": 0, "T": 4, "H": 2, "Dh": 64}),
        Case("no-tokens", {"N": 2, "T": 0, "H": 2, "Dh": 64}),
        Case("no-queries", {"N": 2, "T": 0, "S": 3, "H": 2, "Dh": 64}),
    ]
    return (*packed, *separate, *laid, *prepared, *empty)


def inputs(case: Case, make: Maker) -> dict[str, Any]:
    """A bias of keys that are not turned moves all logits of a row alike: its gradient is 0, no distance is relative
    to it, so there is none then."""
    n, t, h, dh = (case.dims[k] for k in ("N", "T", "H", "Dh"))
    s = case.dims.get("S")
    if s is None:
        given: dict[str, Any] = {"q": make(n, t, 3, h, dh, gain=1.5)}
    else:
        given = {"q": make(n, t, h, dh, gain=1.5), "k": make(n, s, h, dh, gain=1.5), "v": make(n, s, h, dh)}
    norm = {0: None, 1: "rms", 2: "layer"}[case.dims.get("norm", 0)]
    if norm is not None:
        given["norm"] = norm
    if case.dims.get("affine"):
        given |= {f"{x}_weight": make(dh, gain=0.3, offset=1.0) for x in "qk"}
        if norm == "layer":
            given |= {f"{x}_bias": make(dh, gain=0.3) for x in ("qk" if case.dims.get("rope") else "q")}
    if case.dims.get("rope"):
        angles = make(t, dh // 2, gain=3.0, dtype=torch.float32)
        given["rope"] = torch.stack((angles.cos(), angles.sin()))
    return given


def cost(dims: Mapping[str, int], itemsize: int) -> Cost:
    n, t, h, dh = (dims[k] for k in ("N", "T", "H", "Dh"))
    s = dims.get("S", t)
    queries, keys = n * t * h * dh * itemsize, n * s * h * dh * itemsize
    lse, product = n * h * t * 4, 2 * n * h * t * s * dh
    return Cost(
        forward_bytes=2 * queries + 2 * keys + lse,  # q, k, v; out, lse
        backward_bytes=4 * queries + 4 * keys + lse,  # dout, q, k, v, out, lse; dq, dk, dv
        forward_flops=2 * product,  # q k^T, P v
        backward_flops=5 * product,  # q k^T again, dout v^T, P^T dout, dS k, dS^T q
    )


def bench(n: int) -> tuple[Case, ...]:
    """XL (Dh = 72) and L (64): 256 x 256 pixels in patches of 2 and 4, 512 x 512 with half the tokens in all."""
    sizes = (("/2, 256px", 256, 1), ("/2, 512px", 1024, 8), ("/4, 256px", 64, 1))
    return tuple(
        Case(f"{model}{name}, N={max(1, n // part)}", {"N": max(1, n // part), "T": t, "H": 16, "Dh": dh})
        for model, dh in (("XL", 72), ("L", 64))
        for name, t, part in sizes
    )


SPEC = Spec(
    op=OP,
    function=attention,
    reference=reference,
    cases=cases(),
    inputs=inputs,
    gradients=("q", "k", "v", "q_weight", "k_weight", "q_bias", "k_bias"),
    cost=cost,
    bench=bench,
)
