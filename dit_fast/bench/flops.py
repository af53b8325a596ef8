# SPDX-License-Identifier: Apache-2.0
"""FLOPs of a forward or training pass two ways, by the paper's count and by PyTorch's FlopCounterMode, beside the
paper's own table.

The paper's "Gflops" are 1e9 multiply-adds; FlopCounterMode counts 2 a multiply-add. Everything runs on the meta device:
nothing is computed.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dit_fast.models import DiT_models, count_macs

PAPER_GFLOPS = {
    "DiT-S/8": 0.36, "DiT-S/4": 1.41, "DiT-S/2": 6.06, "DiT-B/8": 1.42, "DiT-B/4": 5.56, "DiT-B/2": 23.01,
    "DiT-L/8": 5.01, "DiT-L/4": 19.70, "DiT-L/2": 80.71, "DiT-XL/8": 7.39, "DiT-XL/4": 29.05, "DiT-XL/2": 118.64,
}  # fmt: skip
"""arXiv 2212.09748, table 4: latents of 32 x 32 x 4."""

DESIGN_GFLOPS = {"in_context": 119.4, "cross_attention": 137.6, "adaln": 118.6, "adaln_zero": 118.6}
"""Figure 5 there: XL/2 with each conditioning design."""


@dataclass(frozen=True)
class Count:
    """1e9 multiply-adds of one image: the paper's number, its count applied to our model, and half of PyTorch's."""

    model: str
    conditioning: str
    paper: float
    counted: float
    pytorch: float


def flops(module: nn.Module, *inputs: Tensor, backward: bool = False, **options: Any) -> int:
    """Floating point operations of `module(*inputs)`, of its backward too if asked, as FlopCounterMode counts them.

    Modules and inputs on the meta device are counted without being run. PyTorch's counter knows products and
    convolutions, not elementwise arithmetic; the backward of fused attention includes the recomputed logits.
    """
    with FlopCounterMode(display=False) as counter:
        out = module(*inputs, **options)
        if backward:
            out.sum().backward()
    return counter.get_total_flops()


def counts() -> Iterator[Count]:
    """The paper's 12 models, then XL/2 in its other three designs."""
    for name, paper in PAPER_GFLOPS.items():
        yield count(name, "adaln_zero", paper)
    for conditioning, paper in DESIGN_GFLOPS.items():
        if conditioning != "adaln_zero":
            yield count("DiT-XL/2", conditioning, paper)


def count(name: str, conditioning: str, paper: float) -> Count:
    """PyTorch counts at depths 1 and 2 and goes on from there: all blocks are alike."""
    with torch.device("meta"):
        model, one, two = (
            DiT_models[name](input_size=32, conditioning=conditioning, **depth).eval()
            for depth in ({}, {"depth": 1}, {"depth": 2})
        )
        inputs = torch.empty(1, 4, 32, 32), torch.empty(1), torch.empty(1, dtype=torch.int64)
    first = flops(one, *inputs)
    pytorch = first + (len(model.blocks) - 1) * (flops(two, *inputs) - first)
    return Count(name, conditioning, paper, count_macs(model, 32, 32) / 1e9, pytorch / 2e9)
