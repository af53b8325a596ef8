# SPDX-License-Identifier: Apache-2.0
"""The constructor's arguments of a DiT from the shapes of its weights, for files that say nothing else."""

import math
import re
from collections.abc import Mapping
from typing import Any

from dit_fast.models import DiT_models
from dit_fast.models.dit import SIZES

from .keys import Shapes, nearest

HEADS = {(depth, width): heads for depth, width, heads in SIZES.values()}


def infer(shapes: Shapes, where: str, num_heads: int | None = None, num_classes: int | None = None) -> dict[str, Any]:
    """Arguments of `DiT` with these weights, in our names.

    Shapes tell everything but two things. The number of heads is that of the paper's model of this depth and width
    where there is one. A label table is taken to end with the null label, as the paper's does, unless `num_classes`
    says that it is as long as that.
    """

    def shape(key: str, dims: int) -> tuple[int, ...]:
        if key not in shapes:
            raise ValueError(f"{where} does not hold the weights of a DiT: `{key}` is missing{nearest(key, shapes)}")
        if len(shapes[key]) != dims:
            raise ValueError(f"{where}: `{key}` must have {dims} dimensions, got shape {shapes[key]}")
        return shapes[key]

    width, channels, patch, _ = shape("x_embedder.proj.weight", 4)
    tokens, side = shape("pos_embed", 3)[1], math.isqrt(shape("pos_embed", 3)[1])
    if side * side != tokens:
        raise ValueError(f"{where}: `pos_embed` must hold the tokens of a square image, got {tokens} tokens")
    indices = [int(found[1]) for key in shapes if (found := re.match(r"blocks\.(\d+)\.", key))]
    depth = max(indices, default=-1) + 1
    if depth > len(shapes):
        raise ValueError(f"{where}: block {depth - 1} is named in a file of {len(shapes)} keys")
    ratio = ratio_of(shape("blocks.0.mlp.fc1.weight", 2)[0], width)
    outputs = shape("final_layer.linear.weight", 2)[0]
    if outputs not in (patch**2 * channels, 2 * patch**2 * channels):
        raise ValueError(
            f"{where}: `final_layer.linear.weight` must have {patch**2 * channels} rows for {channels} channels, or"
            f" twice as many with their variance, got {outputs}"
        )
    heads = num_heads or HEADS.get((depth, width))
    if heads is None:
        raise ValueError(
            f"{where}: no paper's model has depth {depth} and width {width}, and weights do not tell the number of"
            f" heads: say it with --num-heads"
        )
    table = shapes.get("y_embedder.embedding_table.weight", (0,))[0]
    classes = max(table - 1, 0) if num_classes is None else num_classes
    if classes not in (table, table - 1):
        raise ValueError(f"{where}: --num-classes must be {table}, or {table - 1} and a null label, got {num_classes}")
    return {
        "input_size": [side * patch, side * patch],
        "patch_size": patch,
        "in_channels": channels,
        "hidden_size": width,
        "depth": depth,
        "num_heads": heads,
        "mlp_ratio": ratio,
        "class_dropout_prob": 0.1 if classes == table - 1 else 0.0,
        "num_classes": classes,
        "learn_sigma": outputs == 2 * patch**2 * channels,
        "conditioning": "adaln_zero",
    }


def ratio_of(hidden: int, width: int) -> float:
    """The `mlp_ratio` that gives this hidden width, which `DiT` computes as int(width * ratio)."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)


def describe(config: Mapping[str, Any]) -> str:
    """One line a person recognises the model by."""
    shape = config["depth"], config["hidden_size"], config["num_heads"]
    names = [f"DiT-{size}/{config['patch_size']}" for size, known in SIZES.items() if known == shape]
    name = names[0] if names and names[0] in DiT_models else "custom DiT"
    height, width = config["input_size"]
    null = "a null label" if config["num_classes"] and config["class_dropout_prob"] > 0 else "no null label"
    return (
        f"{name}: depth {shape[0]}, width {shape[1]}, {shape[2]} heads, patch {config['patch_size']}, MLP ratio"
        f" {config['mlp_ratio']:g}, {config['in_channels']}x{height}x{width}, {config['num_classes']} classes,"
        f" {null}, {'with' if config['learn_sigma'] else 'without'} learned variance"
    )
