# SPDX-License-Identifier: Apache-2.0
"""What an op's spec.py states: its cases, how inputs are made, what they cost. Parity, benchmarks and docs use it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .op import Op

LAYOUTS = ("contiguous", "strided", "misaligned")


@dataclass(frozen=True)
class Case:
    """One problem: named sizes, and how the input tensors lie in memory."""

    name: str
    dims: Mapping[str, int]
    layout: str = "contiguous"


@dataclass(frozen=True)
class Cost:
    """Least work of one call: bytes that must cross the memory bus, and floating point operations (2 per MAC)."""

    forward_bytes: int
    backward_bytes: int
    forward_flops: int = 0
    backward_flops: int = 0


class Maker:
    """Makes random tensors of one case: standard normal times `gain`, in float64, rounded to the dtype under test."""

    def __init__(self, case: Case, dtype: torch.dtype, device: str = "cpu", seed: int = 0) -> None:
        self.case, self.dtype, self.device = case, dtype, device
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(
        self, *shape: int, gain: float = 1.0, offset: float = 0.0, dtype: torch.dtype | None = None
    ) -> Tensor:
        """`dtype` is for what an op keeps in float32 whatever it is given."""
        values = torch.randn(shape, generator=self.generator, dtype=torch.float64) * gain + offset
        return relayout(values.to(dtype or self.dtype).to(self.device), self.case.layout)


def relayout(tensor: Tensor, layout: str) -> Tensor:
    """The same values, elsewhere in memory: every second row of a larger tensor, or one element off alignment."""
    if layout == "contiguous":
        return tensor
    if layout == "misaligned":
        room = tensor.new_empty(tensor.numel() + 1)
        return room[1:].view(tensor.shape).copy_(tensor)
    if layout == "strided":
        room = tensor.new_empty(tuple(2 * size for size in tensor.shape))
        return room[tuple(slice(0, size) for size in tensor.shape)].copy_(tensor)
    raise ValueError(f"relayout: `layout` must be one of {LAYOUTS}, got {layout!r}")


def twin(tensor: Tensor) -> Tensor:
    """The same values in memory of their own, with the same strides and the same distance from an aligned address."""
    if torch.compiler.is_compiling():  # addresses are unknown
        return tensor.clone()
    extent = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)) + 1
    offset = tensor.storage_offset()
    return tensor.new_empty(offset + max(extent, 0)).as_strided(tensor.shape, tensor.stride(), offset).copy_(tensor)


@dataclass(frozen=True)
class Spec:
    """An op as data.

    Attributes:
        op: the operator with its backends.
        function: the public function; `reference` has the same arguments and is its specification.
        cases: problems that every backend must solve; the first is the smallest.
        inputs: makes the keyword arguments of a case.
        gradients: names of the differentiable arguments; absent or None arguments are left out.
        cost: bytes and FLOPs of a case, given its dims and the bytes per element.
        bench: the cases that the paper's models give at N images, XL/2's first.
        timed: what benchmarks time instead of `function` ("kernel") and `reference` ("eager", "compile"): where an op
            writes its arguments, those work on copies; where the reference is not the fastest eager PyTorch, that is.
    """

    op: Op
    function: Callable[..., Any]
    reference: Callable[..., Any]
    cases: tuple[Case, ...]
    inputs: Callable[[Case, Maker], dict[str, Any]]
    gradients: tuple[str, ...]
    cost: Callable[[Mapping[str, int], int], Cost]
    bench: Callable[[int], tuple[Case, ...]] = field(repr=False)
    timed: Mapping[str, Callable[..., Any]] = field(default_factory=dict, repr=False)

    def make(self, case: Case, dtype: torch.dtype, device: str = "cpu", seed: int = 0) -> dict[str, Any]:
        return self.inputs(case, Maker(case, dtype, device, seed))


def token_cases() -> tuple[Case, ...]:
    """The cases of ops on (N, T, D) tokens: ragged T, the models' widths and others, memory layouts, nothing."""
    sizes = [(2, 1, 64), (3, 7, 72), (2, 63, 384), (2, 256, 64), (2, 7, 768), (2, 7, 1024), (3, 63, 1152)]
    plain = [Case(f"N{n}-T{t}-D{d}", {"N": n, "T": t, "D": d}) for n, t, d in sizes]
    odd = Case("N2-T5-D71", {"N": 2, "T": 5, "D": 71})
    laid = [Case(f"N3-T7-D72-{layout}", {"N": 3, "T": 7, "D": 72}, layout) for layout in LAYOUTS[1:]]
    empty = [Case("empty-batch", {"N": 0, "T": 4, "D": 64}), Case("no-tokens", {"N": 2, "T": 0, "D": 64})]
    return (*plain, odd, *laid, *empty)
