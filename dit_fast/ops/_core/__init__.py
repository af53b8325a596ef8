# SPDX-License-Identifier: Apache-2.0
"""What every op is built from. Nothing here knows a particular op."""

from .backends import BACKENDS, BackendUnavailable, checkpoint, current_backend, use_backend
from .checks import autocast, check_same, check_tensor, fail, without_autocast
from .cuda_limits import row_limits
from .direct import why_not_direct
from .op import KERNEL_DTYPES, OPS, Backend, Op, dense, tensors_in
from .spec import LAYOUTS, Case, Cost, Maker, Spec, relayout, token_cases, twin

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
    "dense",
    "fail",
    "relayout",
    "row_limits",
    "tensors_in",
    "token_cases",
    "twin",
    "use_backend",
    "why_not_direct",
    "without_autocast",
]
