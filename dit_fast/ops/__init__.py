# SPDX-License-Identifier: Apache-2.0
"""The ops of a DiT. Each is one function with one specification and several kernels (see `ops/_core/op.py`)."""

import importlib

from ._core import BackendUnavailable, Spec, current_backend, use_backend
from .adaln import adaln

NAMES = ("adaln",)

__all__ = ["NAMES", "BackendUnavailable", "adaln", "current_backend", "specs", "use_backend"]


def specs() -> dict[str, Spec]:
    """The specification of every op, by name: what parity, benchmarks and docs iterate over."""
    return {name: importlib.import_module(f"dit_fast.ops.{name}.spec").SPEC for name in NAMES}
