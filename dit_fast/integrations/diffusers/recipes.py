# SPDX-License-Identifier: Apache-2.0
"""The recipes for diffusers' blocks; `patch` imports this where diffusers has been imported.

A block is known by the name of its class, and by the text of the forward it has (`fingerprints.py`): a version of
diffusers that computes something else, or a subclass with a forward of its own, is left alone.
"""

import dataclasses
import sys
from typing import Any

from torch import nn

from ..patching import RECIPES, Answer, Replacement, derive
from . import blocks_basic, blocks_flux, blocks_mmdit, blocks_parts, blocks_video
from .fingerprints import why_unknown
from .fused import is_layer_norm
from .table import Fused

PREFIX = "diffusers.models."

FAMILIES = [*blocks_basic.FAMILIES, *blocks_mmdit.FAMILIES, *blocks_flux.FAMILIES, *blocks_video.FAMILIES]
TABLE: dict[str, Fused] = {
    row.name: row for row in [*blocks_parts.BLOCKS, *(block for family in FAMILIES for block in family.blocks)]
}
PARTS = {row.name.rsplit(".", 1)[1]: row.ops for row in blocks_parts.BLOCKS}
"""Of a family's parts, by class name: what is fused."""

LEFT = {
    "transformers.transformer_hunyuan_video.HunyuanVideoTokenReplaceTransformerBlock": "its first frame's tokens have"
    " a modulation of their own",
    "transformers.transformer_hunyuan_video.HunyuanVideoTokenReplaceSingleTransformerBlock": "its first frame's tokens"
    " have a modulation of their own",
    "transformers.transformer_ltx2.LTX2VideoTransformerBlock": "its norms are RMSNorms and each token has a modulation",
}
"""Blocks that are alike and not fused."""


def diffusers_block(module: nn.Module) -> Answer:
    for cls in type(module).__mro__:
        name = f"{cls.__module__}.{cls.__qualname__}"
        if name.startswith(PREFIX) and (row := TABLE.get(name.removeprefix(PREFIX))) is not None:
            return _replacement(module, row)
        if name.removeprefix(PREFIX) in LEFT:
            return LEFT[name.removeprefix(PREFIX)]
    return None


def _replacement(module: nn.Module, row: Fused) -> str | Replacement:
    kind: Any = type(module)
    reason = row.unfit(module) or why_unknown(kind, row)
    if reason is not None:
        return reason
    norms = [getattr(module, name) for name in row.norms if hasattr(module, name)]
    fused = row.ops
    if norms and not any(is_layer_norm(norm) for norm in norms):
        fused = tuple(op for op in row.ops if not op.endswith("adaln"))
    if not fused:
        return f"its {type(norms[0]).__name__} has weights or is no layer norm"
    cls = derive(kind, row.block)
    _register(kind, cls)
    return Replacement(cls, fused)


def _register(original: type[nn.Module], cls: type[nn.Module]) -> None:
    """diffusers' caches (first block, mag, ...) look blocks up by class."""
    helpers = sys.modules.get("diffusers.hooks._helpers")
    registry = getattr(helpers, "TransformerBlockRegistry", None)
    if registry is None:
        return
    try:
        metadata = registry.get(original)
    except ValueError:  # not among the blocks they know
        return
    registry.register(cls, dataclasses.replace(metadata, _cached_parameter_indices=None))


RECIPES.insert(0, diffusers_block)  # by name, before those that go by attributes
