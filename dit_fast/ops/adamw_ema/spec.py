# SPDX-License-Identifier: Apache-2.0
"""Cases, inputs and costs of `adamw_ema`. D width of the DiT blocks whose weights are stepped.

The op writes its arguments. Parity needs a function of them: `function` and `reference` step twins and return those.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from .._core import LAYOUTS, Case, Cost, Maker, Spec, twin
from . import adamw_ema, reference
from .cpu_kernel import forward as own
from .operator import OP

WRITTEN = ("params", "exp_avgs", "exp_avg_sqs", "steps", "emas", "copies")


def shapes(dims: Mapping[str, int]) -> list[tuple[int, ...]]:
    """Weights and biases of the blocks' linear layers (modulation, qkv, projection, MLP), and a lone number."""
    d = dims["D"]
    layers = [(6 * d, d), (3 * d, d), (d, d), (4 * d, d), (d, 4 * d)]
    return [shape for f, k in layers for shape in ((f, k), (f,))] * dims["blocks"] + [()]


def cases() -> tuple[Case, ...]:
    """Sizes below, at and beyond a tile; masters with a low-precision copy; clipping; no average; layouts; nothing."""
    plain = [Case(f"D{d}", {"blocks": 1, "D": d}) for d in (1, 8, 16, 71)]
    kinds = [("master", {"master": 1}), ("clip", {"clip": 1}), ("no-ema", {"no_ema": 1}), ("master-clip-float32-grads",
             {"master": 1, "clip": 1, "float32_grads": 1})]  # fmt: skip
    small = {"blocks": 2, "D": 12}
    special = [Case(f"D12-{name}", {**small, **flags}) for name, flags in kinds]
    laid = [Case(f"D12-{layout}", {**small, "master": 1, "clip": 1}, layout) for layout in LAYOUTS[1:]]
    return (*plain, *special, *laid, Case("no-elements", {"blocks": 1, "D": 0}))


def inputs(case: Case, make: Maker) -> dict[str, Any]:
    """Tensors of a run under way, step by step from 1 to 11."""
    dims = case.dims
    sizes = shapes(dims)

    def tensors(gain: float = 1.0, float32: bool = False) -> list[Tensor]:
        dtype = torch.float32 if float32 else make.dtype
        return [make(*shape, gain=gain, dtype=dtype) for shape in sizes]

    master = "master" in dims and make.dtype != torch.float32
    squares = tensors(0.1, float32=True)
    emas = [] if "no_ema" in dims else tensors(0.5, float32=True)
    clip = make(gain=0.1, offset=0.5, dtype=torch.float32) if "clip" in dims else None
    return {
        "params": tensors(0.5, float32=master),
        "grads": tensors(0.1, float32="float32_grads" in dims),
        "exp_avgs": tensors(0.05, float32=True),
        "exp_avg_sqs": [square.square_() for square in squares],
        "steps": [torch.full((), float(i), device=make.device) for i in range(len(sizes))],
        "emas": emas,
        "copies": tensors() if master else [],
        "lr": 1e-2,
        "weight_decay": 0.1,
        "ema_decay": 0.9,
        "clip": clip,
    }


def functional(step: Callable[..., None]) -> Callable[..., tuple[Tensor, ...]]:
    def stepped(**inputs: Any) -> tuple[Tensor, ...]:
        twins = {name: [twin(tensor) for tensor in inputs[name]] for name in WRITTEN}
        step(**{**inputs, **twins})
        return tuple(torch.cat([t.flatten() for t in tensors]) for tensors in twins.values() if tensors)

    return stepped


def pytorch(**inputs: Any) -> None:
    """What PyTorch itself has: its fused AdamW, then a lerp and a copy of all tensors."""
    torch._foreach_add_(inputs["steps"], 1)
    own(**inputs, lr_tensor=None, beta1=0.9, beta2=0.999, eps=1e-8)


def cost(dims: Mapping[str, int], itemsize: int) -> Cost:
    elements = sum(torch.Size(shape).numel() for shape in shapes(dims))
    states = 0 if "no_ema" in dims else 4
    master = "master" in dims and itemsize < 4
    stored = 4 if master else itemsize
    moved = 2 * (stored + 8 + states) + itemsize + (itemsize if master else 0)
    return Cost(forward_bytes=elements * moved, backward_bytes=0)


SPEC = Spec(
    op=OP,
    function=functional(adamw_ema),
    reference=functional(reference),
    cases=cases(),
    inputs=inputs,
    gradients=(),
    cost=cost,
    bench=lambda n: (Case("4 of XL/2's 28 blocks", {"blocks": 4, "D": 1152, "master": 1}),),
    timed={"kernel": adamw_ema, "eager": pytorch, "compile": reference},
)
