# SPDX-License-Identifier: Apache-2.0
"""Argument checks of the public functions: a ValueError names the argument, what was expected and what came."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor


def fail(op: str, argument: str, expected: str, got: object) -> None:
    raise ValueError(f"{op}: `{argument}` must be {expected}, got {got}")


def check_tensor(op: str, argument: str, value: object, shape: tuple[int | str, ...]) -> None:
    """`shape` mixes exact sizes and letters; a letter stands for any size."""
    if not isinstance(value, Tensor):
        fail(op, argument, "a tensor", type(value).__name__)
        return
    if value.shape != shape and not _fits(value.shape, shape):
        # the text is made here only: sizes may be symbols while a graph is traced
        wanted = f"of shape ({', '.join(map(str, shape))}{',' if len(shape) == 1 else ''})"
        fail(op, argument, wanted, f"shape {tuple(value.shape)}")
    if not value.is_floating_point():
        fail(op, argument, "floating point", value.dtype)


def _fits(sizes: Sequence[int], shape: Sequence[int | str]) -> bool:
    if len(sizes) != len(shape):
        return False
    for size, want in zip(sizes, shape, strict=True):  # noqa: SIM110 (a generator would take twice the time)
        if not isinstance(want, str) and size != want:
            return False
    return True


def check_same(op: str, first_name: str, first: Tensor, **others: Tensor | None) -> None:
    """All present tensors must share the device and dtype of the first."""
    device, dtype = first.device, first.dtype
    for name, tensor in others.items():
        if tensor is None:
            continue
        if tensor.device != device:
            fail(op, name, f"on {device} like `{first_name}`", tensor.device)
        if tensor.dtype != dtype:
            fail(op, name, f"{dtype} like `{first_name}`", tensor.dtype)


@torch.compiler.assume_constant_result  # torch 2.11 cannot trace the question
def has_autocast(device_type: str) -> bool:
    """Whether autocast knows this kind of device; "meta" it does not."""
    return torch.amp.is_autocast_available(device_type)


def autocast(*tensors: Tensor | None, matmul: bool = False) -> tuple[Any, ...]:
    """Cast as autocast would cast the eager layers: norms and their neighbours to float32, `matmul`s to its dtype.

    Outside autocast (and in float64) nothing changes, and mixed dtypes are an error.
    """
    if not torch._C._is_any_autocast_enabled():
        return tensors
    first = next(t for t in tensors if t is not None)
    device = first.device.type
    if not has_autocast(device) or not torch.is_autocast_enabled(device) or first.dtype == torch.float64:
        return tensors
    dtype = torch.get_autocast_dtype(device) if matmul else torch.float32
    return tuple(None if t is None else t.to(dtype) for t in tensors)


def without_autocast(device_type: str) -> AbstractContextManager[object]:
    """A block in which autocast is off: an op has already cast its inputs, and its reference computes in that dtype."""
    if not torch._C._is_any_autocast_enabled() or not has_autocast(device_type):
        return nullcontext()
    return torch.autocast(device_type, enabled=False)
