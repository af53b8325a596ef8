# SPDX-License-Identifier: Apache-2.0
"""What a row of the table of recipes is. The rows are in `blocks_*.py`, `recipes.py` collects them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

Block: Any = object
"""Base of the classes whose forward takes a diffusers forward's place. Their `self` is the block of diffusers, whose
attributes they use, and `super().forward` is the original: `Any`, to a type checker."""

if TYPE_CHECKING:
    Unfit = Callable[[nn.Module], str | None]


def never(module: nn.Module) -> None:
    """No such module is unfit."""


@dataclass(frozen=True)
class Fused:
    """One class of diffusers and the class whose forward replaces its own.

    Args:
        name: of diffusers' class, below `diffusers.models`.
        block: derives from `Block`; its forward takes the original's arguments by the same names.
        ops: those of `dit_fast.ops` that the forward calls.
        norms: attributes that hold the layer norms which the ops compute. Where none of them is a layer norm without
            weights, nothing ends in `adaln`.
        relies: what else must be as known, beside the forward: methods of the class, or `module.Class.method` below
            `diffusers.models`.
        unfit: why this one is left alone, or None.
    """

    name: str
    block: type
    ops: tuple[str, ...]
    norms: tuple[str, ...] = ()
    relies: tuple[str, ...] = ()
    unfit: "Unfit" = never


@dataclass(frozen=True)
class Family:
    """Models of one architecture.

    Args:
        models: diffusers' classes, as the documentation names them.
        blocks: rows of this family alone.
        parts: class names of the modules (`blocks_parts.py`) in these models that are replaced too.
        left: what is not fused and why.
    """

    models: tuple[str, ...]
    blocks: tuple[Fused, ...]
    parts: tuple[str, ...] = ()
    left: str = ""


FP32 = ("normalization.FP32LayerNorm.forward",)
"""`relies` of a block whose layer norms compute in float32."""

GATES = ("gated_residual",)
STREAM = ("gated_residual_adaln", "gated_residual")
WHOLE = ("adaln", *STREAM)

FINAL = "the last norm, in the model's own forward"
RMS = "the RMSNorms, which no op computes"
AFFINE = "layer norms, which have weights"
