# SPDX-License-Identifier: Apache-2.0
"""The ops of a DiT. Each is one function with one specification and several kernels (see `ops/_core/op.py`)."""

import importlib
import logging

from ._core import BACKENDS, BackendUnavailable, Spec, checkpoint, current_backend, native, use_backend
from .adaln import adaln
from .adamw_ema import adamw_ema
from .attention import attention
from .final_layer import final_layer
from .gated_residual import gated_residual
from .gated_residual_adaln import gated_residual_adaln
from .linear_gelu import linear_gelu
from .linear_gelu.linear import linear
from .linear_gelu.mlp import mlp
from .linear_gelu.packed import prepack
from .patch_embed import patch_embed

NAMES = (
    "adaln", "adamw_ema", "attention", "final_layer", "gated_residual", "gated_residual_adaln", "linear_gelu",
    "patch_embed",
)  # fmt: skip

__all__ = [
    "BACKENDS",
    "NAMES",
    "BackendUnavailable",
    "adaln",
    "adamw_ema",
    "attention",
    "checkpoint",
    "current_backend",
    "final_layer",
    "gated_residual",
    "gated_residual_adaln",
    "linear",
    "linear_gelu",
    "mlp",
    "patch_embed",
    "prepack",
    "specs",
    "use_backend",
]

if native.MISSING:  # said here too, since a compiled graph logs nothing
    logging.getLogger("dit_fast").warning("no C++ kernels: %s", native.MISSING)


def specs() -> dict[str, Spec]:
    """The specification of every op, by name: what parity, benchmarks and docs iterate over."""
    return {name: importlib.import_module(f"dit_fast.ops.{name}.spec").SPEC for name in NAMES}
