# SPDX-License-Identifier: Apache-2.0
"""What every op is built from. Nothing here knows a particular op."""

from .backends import BACKENDS, BackendUnavailable, checkpoint, current_backend, use_backend
from .checks import autocast, check_same, check_tensor, fail, without_autocast
from .cuda_limits import final_layer_limits, row_limits
from .op import KERNEL_DTYPES, OPS, Backend, Op
from .spec import LAYOUTS, Case, Cost, Maker, Spec, relayout, token_cases

__all__ = [
    "BACKENDS",
    "KERNEL_DTYPES",
    "LAYOUTS",
    "OPS",
    "Backend",
    "BackendUnavailable",
    "Case",
    "Cost",
    "Maker",
    "Op",
    "Spec",
    "autocast",
    "check_same",
    "check_tensor",
    "checkpoint",
    "current_backend",
    "fail",
    "relayout",
    "final_layer_limits",
    "row_limits",
    "token_cases",
    "use_backend",
    "without_autocast",
]
