# SPDX-License-Identifier: Apache-2.0
"""Which kernel runs: the process default, the `use_backend` context and what `auto` prefers."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import TracebackType
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint as recomputed

from dit_fast import env

BACKENDS = ("reference", "cpu", "triton", "cuda")

PREFERENCE = {
    "cpu": ("cpu", "reference"),
    "cuda": ("cuda", "triton", "reference"),
}
"""What `auto` tries, in order, per device type; the reference runs on any device."""

log = logging.getLogger("dit_fast")
_announced: set[tuple[str, str, str]] = set()
_names: set[str] = {*BACKENDS, "auto"}
_ops: set[str] = set()
_default: str = "auto"
_chosen: dict[str, str] = {}  # op: backend, where it is not the default


class BackendUnavailable(RuntimeError):
    """A backend was asked for by name and cannot run here; the message carries its reason."""


class use_backend:
    """Choose the kernels: as a context manager for a block, or called alone from now on.

    Args:
        name: of all ops: "reference" (plain PyTorch), "cpu" (C++), "triton", "cuda", the name of a registered backend,
            or "auto" (by device, see PREFERENCE; each choice is logged once to the logger `dit_fast`).
            None: as before.
        ops: of single ops, by name: `attention="sdpa"`. They add to those named before, unless `name` is given.

    An explicit backend runs or raises `BackendUnavailable` with its reason; it never falls back. The choice is the
    process's, not a thread's.

    >>> use_backend("reference")          # from now on
    >>> with use_backend("triton", attention="sdpa"):       # here only
    ...     y = model(x, t, label)
    """

    def __init__(self, name: str | None = None, /, **ops: str) -> None:
        global _default, _chosen
        for argument, value in (("name", name), *ops.items()):
            if value is not None and value not in _names:
                raise ValueError(f"use_backend: `{argument}` must be one of {sorted(_names)}, got {value!r}")
        if not ops.keys() <= _ops:
            raise ValueError(f"use_backend: ops are {sorted(_ops)}, got {sorted(ops.keys() - _ops)}")
        self.previous = _default, _chosen
        _chosen = {**_chosen, **ops} if name is None else ops
        _default = _default if name is None else name

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        global _default, _chosen
        _default, _chosen = self.previous


def checkpoint(function: Callable[..., Any], *arguments: Any) -> Any:
    """`torch.utils.checkpoint`, whose recomputation in the backward pass uses the backend of its forward."""
    default, chosen = _default, _chosen

    @contextmanager
    def same_backend() -> Iterator[None]:
        with use_backend(default, **chosen):
            yield

    if torch.compiler.is_compiling():  # the choice is a constant of the graph
        return recomputed(function, *arguments, use_reentrant=False)
    contexts = nullcontext(), same_backend()
    return recomputed(function, *arguments, use_reentrant=False, context_fn=lambda: contexts)


def current_backend(op: str | None = None) -> str:
    """The backend asked for at this point, of all ops or of one: a name or "auto"."""
    return _default if op is None else _chosen.get(op, _default)


def add_name(name: str) -> None:
    _names.add(name)


def add_op(name: str) -> None:
    _ops.add(name)


def announce(op: str, device: str, choice: str, passed_over: list[str]) -> None:
    """Log what `auto` chose and why not the others, once per op, device and choice."""
    key = (op, device, choice)
    if key in _announced:
        return
    _announced.add(key)
    level = logging.WARNING if choice == "reference" else logging.INFO
    reasons = "".join(f"; not {reason}" for reason in passed_over)
    log.log(level, "%s on %s: backend %s%s", op, device, choice, reasons)


if env.DEFAULT_BACKEND not in _names:
    raise ValueError(f"the variable DIT_FAST_BACKEND must be one of {sorted(_names)}, got {env.DEFAULT_BACKEND!r}")
use_backend(env.DEFAULT_BACKEND)
