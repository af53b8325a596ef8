# SPDX-License-Identifier: Apache-2.0
"""What this machine can do at most, measured at the start of a run: copy memory, and multiply matrices."""

from dataclasses import dataclass, field
from functools import partial
from statistics import median
from typing import Any

import torch

from .timing import TEMPERATURES, time_alternating

SIDES = {"cpu": (256, 512, 1024, 2048), "cuda": (8192,)}
"""Of the square matrices, tried in turn: the larger the nearer to the rate of the units."""

ENOUGH = 0.1
"""Seconds of one product: a CPU without instructions for a dtype would take minutes for the largest."""


@dataclass(frozen=True)
class Ceilings:
    """`copy`: GB/s, read and written bytes together. `matmul`: TFLOP/s by dtype, two operations a multiply-add."""

    copy: float
    matmul: dict[str, float] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return {"copy_gbytes_per_s": self.copy, "matmul_tflops": dict(self.matmul)}

    def share(self, ms: float, dtype: str, moved: float = 0, flops: float = 0) -> tuple[float | None, str | None]:
        """The least time these bytes and operations need here, over `ms`; and which of the two it is.

        A narrower dtype's operations can always be done in float32, which is the faster where a CPU has no
        instructions for it.
        """
        needed = {"copy": moved / (self.copy * 1e9)}
        if dtype in self.matmul:
            needed["matmul"] = flops / (max(self.matmul[dtype], self.matmul.get("float32", 0.0)) * 1e12)
        which = max(needed, key=lambda name: needed[name])
        return (needed[which] / (ms * 1e-3), which) if needed[which] > 0 else (None, None)


def measure(device: str, dtypes: list[torch.dtype]) -> Ceilings:
    """Of a copy, and of products in these dtypes and in float32."""
    rates = {str(d).removeprefix("torch."): matmul_rate(device, d) for d in dict.fromkeys([torch.float32, *dtypes])}
    return Ceilings(copy_bandwidth(device), rates)


def copy_bandwidth(device: str) -> float:
    """GB/s of a copy far larger than the caches."""
    size = (2 << 30) if device == "cuda" else (256 << 20)
    source = torch.zeros(size, dtype=torch.uint8, device=device).random_()
    target = torch.empty_like(source)
    times = time_alternating({"copy": lambda: target.copy_(source)}, 9, device, TEMPERATURES[device][0])
    return 2 * size / median(times["copy"]) / 1e9


def matmul_rate(device: str, dtype: torch.dtype) -> float:
    """The best TFLOP/s of products of two square matrices of random numbers (zeros run faster); float32 is not TF32."""
    best = 0.0
    for side in SIDES[device]:
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        out = torch.empty_like(a)
        times = time_alternating({"matmul": partial(torch.mm, a, b, out=out)}, 5, device, "", 2)
        best = max(best, 2 * side**3 / median(times["matmul"]) / 1e12)
        if median(times["matmul"]) > ENOUGH:
            break
    return best
