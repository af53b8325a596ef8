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
_current: str = "auto"


class BackendUnavailable(RuntimeError):
    """A backend was asked for by name and cannot run here; the message carries its reason."""


class use_backend:
    """Choose the kernels: as a context manager for a block, or called alone as the process default from now on.

    Args:
        name: "reference" (plain PyTorch), "cpu" (C++), "triton", "cuda", the name of a registered backend, or
            "auto" (by device, see PREFERENCE; each choice is logged once to the logger `dit_fast`).

    An explicit backend runs or raises `BackendUnavailable` with its reason; it never falls back. The choice is the
    process's, not a thread's.

    >>> use_backend("reference")          # from now on
    >>> with use_backend("triton"):       # here only
    ...     y = model(x, t, label)
    """

    def __init__(self, name: str) -> None:
        global _current
        if name not in _names:
            raise ValueError(f"use_backend: `name` must be one of {sorted(_names)}, got {name!r}")
        self.previous = _current
        _current = name

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        global _current
        _current = self.previous


def checkpoint(function: Callable[..., Any], *arguments: Any) -> Any:
    """`torch.utils.checkpoint`, whose recomputation in the backward pass uses the backend of its forward."""
    asked = current_backend()

    @contextmanager
    def same_backend() -> Iterator[None]:
        with use_backend(asked):
            yield

    if torch.compiler.is_compiling():  # the choice is a constant of the graph
        return recomputed(function, *arguments, use_reentrant=False)
    contexts = nullcontext(), same_backend()
    return recomputed(function, *arguments, use_reentrant=False, context_fn=lambda: contexts)


def current_backend() -> str:
    """The backend asked for at this point: a name or "auto"."""
    return _current


def add_name(name: str) -> None:
    _names.add(name)


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
