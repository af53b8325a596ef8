# SPDX-License-Identifier: Apache-2.0
"""The parts of a DiT in the paper's words, built from `dit_fast.ops`."""

from .blocks import (
    AdaLNBlock,
    AdaLNZeroBlock,
    Affine,
    Block,
    CrossAttentionBlock,
    FinalLayer,
    InContextBlock,
    Modulation,
    blocks_in_one_call,
)
from .embed import LabelEmbedder, PatchEmbed, TimestepEmbedder, grid_positions, sincos_2d, timestep_features
from .layers import Attention, CrossAttention, Linear, Mlp
from .rope import rope_2d

__all__ = [
    "AdaLNBlock",
    "AdaLNZeroBlock",
    "Affine",
    "Attention",
    "Block",
    "CrossAttention",
    "CrossAttentionBlock",
    "FinalLayer",
    "InContextBlock",
    "LabelEmbedder",
    "Linear",
    "Mlp",
    "Modulation",
    "PatchEmbed",
    "TimestepEmbedder",
    "blocks_in_one_call",
    "grid_positions",
    "rope_2d",
    "sincos_2d",
    "timestep_features",
]
