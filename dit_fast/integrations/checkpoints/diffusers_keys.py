# SPDX-License-Identifier: Apache-2.0
"""diffusers' DiTTransformer2DModel: its keys and its configuration, to and from ours.

Each of its blocks has a copy of the timestep and label embedders, where we have one; its q, k and v are three Linears;
its position embedding is not stored but computed from `sample_size`.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dit_fast.nn import sincos_2d

from .keys import check_keys, expected_shapes, shapes_of

CLASSES = ("DiTTransformer2DModel", "Transformer2DModel")
"""The second is what diffusers called it before 0.30; published configurations still do."""

FIXED = {
    "activation_fn": "gelu-approximate", "attention_bias": True, "dropout": 0.0, "norm_elementwise_affine": False,
    "norm_type": "ada_norm_zero",
}  # fmt: skip
"""Arguments of theirs that have one value in a DiT."""

COPIES = {
    "t_embedder.mlp.0.weight": "timestep_embedder.linear_1.weight",
    "t_embedder.mlp.0.bias": "timestep_embedder.linear_1.bias",
    "t_embedder.mlp.2.weight": "timestep_embedder.linear_2.weight",
    "t_embedder.mlp.2.bias": "timestep_embedder.linear_2.bias",
    "y_embedder.embedding_table.weight": "class_embedder.embedding_table.weight",
}
"""Ours, and its name in every block of theirs, below norm1.emb."""

RENAMED = {
    "x_embedder.proj": "pos_embed.proj", "final_layer.adaLN_modulation.1": "proj_out_1",
    "final_layer.linear": "proj_out_2",
}  # fmt: skip
RENAMED_IN_BLOCK = {
    "attn.proj": "attn1.to_out.0", "mlp.fc1": "ff.net.0.proj", "mlp.fc2": "ff.net.2",
    "adaLN_modulation.1": "norm1.linear",
}  # fmt: skip


def key_map(depth: int) -> dict[str, list[str]]:
    """Our keys, each with theirs: copies (the embedders), the thirds of a qkv Linear, or one name. No `pos_embed`."""
    names = {ours: [f"transformer_blocks.{i}.norm1.emb.{b}" for i in range(depth)] for ours, b in COPIES.items()}
    renamed = dict(RENAMED)
    for i in range(depth):
        renamed |= {f"blocks.{i}.{a}": f"transformer_blocks.{i}.{b}" for a, b in RENAMED_IN_BLOCK.items()}
    for part in ("weight", "bias"):
        names |= {f"{ours}.{part}": [f"{theirs}.{part}"] for ours, theirs in renamed.items()}
        for i in range(depth):
            names[f"blocks.{i}.attn.qkv.{part}"] = [f"transformer_blocks.{i}.attn1.to_{x}.{part}" for x in "qkv"]
    return names


def config_from_diffusers(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """DiT's arguments from theirs; absent ones have diffusers' defaults.

    Raises:
        ValueError: a model that is not a DiT: the argument, its one possible value and what came.
    """
    for name, value in FIXED.items():
        if config.get(name, value) != value:
            raise ValueError(f"{where}: `{name}` must be {value!r} in a DiT, got {config[name]!r}")
    if config.get("num_embeds_ada_norm", 1000) is None:
        raise ValueError(f"{where}: `num_embeds_ada_norm` must be the number of classes, got None")
    heads, channels = config.get("num_attention_heads", 16), config.get("in_channels", 4)
    outputs = config.get("out_channels") or channels
    if outputs not in (channels, 2 * channels):
        raise ValueError(f"{where}: `out_channels` must be in_channels ({channels}) or twice that, got {outputs}")
    size = config.get("sample_size", 32)
    return {
        "input_size": [size, size],
        "patch_size": config.get("patch_size", 2),
        "in_channels": channels,
        "hidden_size": heads * config.get("attention_head_dim", 72),
        "depth": config.get("num_layers", 28),
        "num_heads": heads,
        "mlp_ratio": 4.0,
        "class_dropout_prob": 0.1,
        "num_classes": config.get("num_embeds_ada_norm", 1000),
        "learn_sigma": outputs == 2 * channels,
        "conditioning": "adaln_zero",
    }


def config_to_diffusers(config: Mapping[str, Any]) -> dict[str, Any]:
    """Theirs from ours; norm_eps is the 1e-6 of the model these weights were trained in, not their default."""
    channels = config["in_channels"]
    return {
        "_class_name": CLASSES[0],
        "num_attention_heads": config["num_heads"],
        "attention_head_dim": config["hidden_size"] // config["num_heads"],
        "in_channels": channels,
        "out_channels": channels * (1 + config["learn_sigma"]),
        "num_layers": config["depth"],
        "sample_size": config["input_size"][0],
        "patch_size": config["patch_size"],
        "num_embeds_ada_norm": config["num_classes"],
        "norm_eps": 1e-6,
        **FIXED,
    }


def positions(config: Mapping[str, Any], dtype: torch.dtype) -> Tensor:
    """What a DiT of this configuration has as `pos_embed`, before any training of it: (1, T, D)."""
    grid = [size // config["patch_size"] for size in config["input_size"]]
    return sincos_2d(grid[0], grid[1], config["hidden_size"]).float().to(dtype)[None]


def from_diffusers(theirs: Mapping[str, Tensor], config: Mapping[str, Any], where: str) -> dict[str, Tensor]:
    """Our weights from theirs, for DiT's arguments `config`. The copies must be equal in every bit."""
    shapes, names = expected_shapes(config), key_map(config["depth"])
    expected: dict[str, tuple[int, ...]] = {}
    for ours, keys in names.items():
        rows, *rest = shapes[ours]
        expected |= {key: (rows // 3 if ".qkv." in ours else rows, *rest) for key in keys}
    check_keys(shapes_of(theirs), expected, where)
    weights = {"pos_embed": positions(config, theirs["pos_embed.proj.weight"].dtype)}
    for ours, keys in names.items():
        parts = [theirs[key] for key in keys]
        dtypes = {part.dtype for part in parts}
        if len(dtypes) > 1:
            raise ValueError(f"{where}: {', '.join(keys[:3])} must have one dtype, got {sorted(map(str, dtypes))}")
        if ours in COPIES:
            for key, part in zip(keys, parts, strict=True):
                if not same_bits(part, parts[0]):
                    raise ValueError(
                        f"{where}: every block must have the same embedders, as a DiT has one; `{key}` is unlike"
                        f" `{keys[0]}`"
                    )
        weights[ours] = torch.cat(parts) if ".qkv." in ours else parts[0]
    return {key: weights[key] for key in shapes}


def to_diffusers(ours: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Their weights from ours; every tensor with memory of its own, as safetensors wants them."""
    theirs: dict[str, Tensor] = {}
    for key, names in key_map(config["depth"]).items():
        parts = ours[key].chunk(3) if ".qkv." in key else [ours[key]] * len(names)
        theirs |= {name: part.clone() for name, part in zip(names, parts, strict=True)}
    return theirs


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal as stored: NaN equals itself, and 0 does not equal -0."""
    return torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


def why_not_diffusers(weights: Mapping[str, Tensor], config: Mapping[str, Any]) -> str | None:
    """Why diffusers' model cannot hold this DiT."""
    width = config["hidden_size"]
    if config["num_classes"] == 0 or config["class_dropout_prob"] == 0:
        return "its label table always ends with a null label, and this model has none"
    if int(width * config["mlp_ratio"]) != 4 * width:
        return f"its MLPs are 4 times as wide as the model, these {config['mlp_ratio']:g} times"
    pos = weights["pos_embed"]
    off = (pos.double() - positions(config, pos.dtype).double()).abs().max()
    if pos.dtype != weights["x_embedder.proj.weight"].dtype or off > torch.finfo(pos.dtype).eps:
        return f"it computes its position embeddings, and these are others (by up to {float(off):.2g})"
    return None
