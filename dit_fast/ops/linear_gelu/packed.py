# SPDX-License-Identifier: Apache-2.0
"""Weights in oneDNN's own layout, kept beside the weights they were made of.

A packed copy is found by its weight and does not keep it alive; it is made at the first use and again whenever the
weight is no longer what it was: its version, which every in-place operation raises, its memory, dtype and shape, and a
few dozen of its elements, for writes that raise no version (through `.data`, through NumPy, by FSDP's all-gather).
Modules, state dicts, copies and pickles know nothing of it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

PROBES = 64
"""Elements of a weight that are compared; every training step, average or load changes nearly all."""


@dataclass(frozen=True)
class _Packed:
    version: int
    memory: tuple[Any, ...]
    probes: Tensor
    few: bool
    weight: Tensor

    def is_of(self, weight: Tensor, few: bool) -> bool:
        return (
            self.version == weight._version
            and self.memory == _memory(weight)
            and self.few == few
            and torch.equal(self.probes, _probes(weight))
        )


_kept: Any = WeakIdKeyDictionary()
_enabled = True


def prepack(enabled: bool) -> None:
    """Whether linears may keep packed copies of their weights from now on, on CPUs where that is faster.

    A copy takes the memory of its weight once more. With False those that exist are freed, too.
    """
    global _enabled
    _enabled = enabled
    if not enabled:
        _kept.clear()


def why_not(rows: Tensor, weight: Tensor) -> str | None:
    """Why there is no packed product of rows (M, K) and weight (F, K); None if there is."""
    if not _enabled:
        return "prepack(False) was called"
    if weight.is_inference():
        return "a weight made in inference mode does not tell when it changes"
    if torch.is_grad_enabled() and (weight.requires_grad or rows.requires_grad):
        return "a gradient is wanted: weights are packed for inference only"
    return missing(rows.dtype)


@cache
def missing(dtype: torch.dtype) -> str | None:
    """Why PyTorch's private operators cannot be used here: they are asked for their schema, and computed with once."""
    if not torch.backends.mkldnn.is_available():
        return "this PyTorch has no oneDNN"
    if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return "oneDNN has no bfloat16 on this CPU"
    if dtype == torch.float16 and not torch.ops.mkldnn._is_mkldnn_fp16_supported():
        return "oneDNN has no float16 on this CPU"
    try:
        return _tried(dtype)
    except (AttributeError, RuntimeError, TypeError) as error:
        return f"PyTorch's private oneDNN operators are not as known: {str(error)[:200]}"


def _tried(dtype: torch.dtype) -> str | None:
    x = torch.linspace(-2, 2, 4 * 24).reshape(4, 24).to(dtype)
    weight = torch.linspace(-1, 1, 8 * 24).reshape(8, 24).to(dtype)
    bias = torch.linspace(-1, 1, 8).to(dtype)
    exact = torch.nn.functional.linear(x.double(), weight.double(), bias.double())
    copy = reorder()(weight, len(x))
    attributes: tuple[tuple[Any, ...], ...] = (("none", [], ""), ("gelu", [], "tanh"))
    for attribute in attributes:
        got = linear_pointwise()(x, copy, bias, *attribute)
        wanted = torch.nn.functional.gelu(exact, approximate="tanh") if attribute[0] == "gelu" else exact
        error = (got.double() - wanted).abs().max() / wanted.abs().max()
        if got.dtype != dtype or not error <= 8 * torch.finfo(dtype).eps:
            return f"oneDNN's linear ({attribute[0]}) is off by {float(error):.1e} in {dtype}"
    return None


def linear_pointwise() -> Callable[..., Tensor]:
    return torch.ops.mkldnn._linear_pointwise.default


def reorder() -> Callable[..., Tensor]:
    return torch.ops.mkldnn._reorder_linear_weight.default


@torch.no_grad()
def pack(weight: Tensor, rows: int) -> Tensor:
    """The packed copy of a dense weight (F, K), for products with about so many rows."""
    few = rows <= 16
    found = _kept.get(weight)
    if found is None or not found.is_of(weight, few):
        found = _Packed(weight._version, _memory(weight), _probes(weight), few, reorder()(weight, 8 if few else 512))
        _kept[weight] = found
    return found.weight


def _memory(weight: Tensor) -> tuple[Any, ...]:
    return weight.data_ptr(), weight.dtype, weight.shape


def _probes(weight: Tensor) -> Tensor:
    flat = weight.detach().view(-1)
    return flat[:: max(1, flat.numel() // PROBES)].clone()
