# SPDX-License-Identifier: Apache-2.0
"""Read a checkpoint of any known format, write it in any other."""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from dit_fast.files import whole_or_not
from dit_fast.models import DiT
from dit_fast.models.checkpoint import HEADER, load_weights, read_safetensors, save_folder, save_weights

from . import files
from .architecture import infer
from .diffusers_keys import (
    CLASSES,
    config_from_diffusers,
    config_to_diffusers,
    from_diffusers,
    to_diffusers,
    why_not_diffusers,
)
from .keys import check_keys, expected_shapes, shapes_of

FORMATS = ("dit_fast", "release", "diffusers", "sit")

FAST = "FastDiTTransformer2DModel"
OTHER_NUMERICS = (
    "diffusers runs these weights with other timestep frequencies (127 for 128) and, unless its norm_eps is 1e-6,"
    " another second norm; a dit_fast model computes as the paper's release does, FastDiTTransformer2DModel as either"
)


@dataclass
class Checkpoint:
    """A DiT's weights in our names and its constructor's arguments; where they came from, and what to know about it."""

    weights: dict[str, Tensor]
    config: dict[str, Any]
    source: str
    notes: list[str] = field(default_factory=list)

    def model(self) -> DiT:
        """A DiT with these weights, in evaluation mode."""
        with torch.device("meta"):
            model = DiT(**self.config)
        model.load_state_dict(self.weights, assign=True)
        return model.eval()


def convert(
    source: str | Path,
    target: str | Path,
    to: str,
    *,
    which: str | None = None,
    num_heads: int | None = None,
    num_classes: int | None = None,
) -> Checkpoint:
    """`read` the source, `write` the target; returns what was read."""
    _check_target(Path(target), to)
    checkpoint = read(source, which=which, num_heads=num_heads, num_classes=num_classes)
    write(checkpoint, target, to)
    return checkpoint


def load(path: str | Path, **options: Any) -> DiT:
    """A DiT in evaluation mode from a checkpoint of any format; options as `read` has them."""
    return read(path, **options).model()


def read(
    path: str | Path, *, which: str | None = None, num_heads: int | None = None, num_classes: int | None = None
) -> Checkpoint:
    """A checkpoint of any known format, which is recognised by what it holds.

    Args:
        which: the entry of a `.pt` that holds the weights; "ema" where None.
        num_heads: for a `.pt` of a depth and width that no paper's model has.
        num_classes: for a `.pt` whose label table has no null label (it is taken to have one otherwise).

    Raises:
        FileNotFoundError: nothing at `path`.
        ValueError: what is there is no DiT, broken, or of a shape that does not fit; names the key and the nearest.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no checkpoint at {path}")
    told = {"which": which, "num_heads": num_heads, "num_classes": num_classes}
    if path.is_dir():
        return _read_folder(path, told)
    if files.is_safetensors(path):
        weights, header = read_safetensors(path)
        if HEADER in header:
            return _read_own(path, told)
        _refuse("--which", which, f"{path} is a safetensors file, which has no entries")
        weights, arguments, where = files.plain_keys(weights, path), files.Arguments(), "a safetensors file"
    else:
        weights, arguments, where = files.load_pt(path, which)
    if any(key.startswith("transformer_blocks.") for key in weights):
        raise ValueError(f"{path} has diffusers' keys: give the folder that holds it and its config.json")
    shapes = shapes_of(weights)
    if num_classes is None and isinstance(arguments.get("num_classes"), int):
        num_classes = arguments["num_classes"]
    config = infer(shapes, str(path), num_heads, num_classes)
    check_keys(shapes, expected_shapes(config), str(path))
    return Checkpoint(weights, config, f"release ({where}; DiT's and SiT's have the same keys)")


def _read_folder(path: Path, told: Mapping[str, Any]) -> Checkpoint:
    if (path / "model_index.json").is_file() and (path / "transformer").is_dir():
        return _read_folder(path / "transformer", told)
    if not (path / "config.json").is_file():
        raise ValueError(f"{path} must hold a config.json, it holds {sorted(p.name for p in path.iterdir())}")
    config = files.load_json(path / "config.json")
    kind = config.get("_class_name")
    if kind is None:
        return _read_own(path, told)
    if kind not in (*CLASSES, FAST):
        raise ValueError(f"{path} must hold a {CLASSES[0]} or {FAST}, its config.json names {kind!r}")
    for option, value in told.items():
        _refuse("--" + option.replace("_", "-"), value, f"config.json in {path} says it")
    ours = config_from_diffusers(config, str(path))
    weights = files.load_diffusers_weights(path)
    if kind == FAST:
        weights = {key.removeprefix("dit."): value for key, value in weights.items()}
        check_keys(shapes_of(weights), expected_shapes(ours), str(path))
        return Checkpoint(weights, ours, f"diffusers ({FAST})", [OTHER_NUMERICS])
    return Checkpoint(from_diffusers(weights, ours, str(path)), ours, f"diffusers ({kind})", [OTHER_NUMERICS])


def _read_own(path: Path, told: Mapping[str, Any]) -> Checkpoint:
    for option, value in told.items():
        _refuse("--" + option.replace("_", "-"), value, f"{path} says it itself")
    weights, config = load_weights(path)
    try:
        expected = expected_shapes(config)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: its configuration is no DiT's: {error}") from error
    check_keys(shapes_of(weights), expected, str(path))
    with torch.device("meta"):
        config = DiT(**config).config  # with the defaults of what an older file left out
    return Checkpoint(weights, config, "dit_fast")


def _refuse(option: str, value: object, why: str) -> None:
    if value is not None:
        raise ValueError(f"{option} must be left out, since {why}; got {value!r}")


def write(checkpoint: Checkpoint, path: str | Path, to: str) -> None:
    """Write a file or folder that must not be there yet, whole or not at all.

    Raises:
        ValueError: an unknown format, a target that exists, or a model that the format has no place for.
    """
    path = Path(path)
    _check_target(path, to)
    reason = why_not(checkpoint, to)
    if reason is not None:
        raise ValueError(f"this model cannot be written as {to}: {reason}")
    weights, config = checkpoint.weights, checkpoint.config
    if to in ("release", "sit"):
        with whole_or_not(path) as partial:
            torch.save({key: value.clone() for key, value in weights.items()}, partial)
    elif to == "dit_fast" and path.suffix == ".safetensors":
        save_weights(weights, config, path)
    else:
        _write_folder(weights, config, path, to)


def _write_folder(weights: dict[str, Tensor], config: dict[str, Any], path: Path, to: str) -> None:
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.mkdir(parents=True)
    try:
        if to == "dit_fast":
            save_folder(weights, config, partial)
        else:
            save_file(to_diffusers(weights, config), partial / f"{files.STEM}.safetensors", metadata={"format": "pt"})
            (partial / "config.json").write_text(json.dumps(config_to_diffusers(config), indent=2) + "\n")
        os.replace(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def why_not(checkpoint: Checkpoint, to: str) -> str | None:
    """Why a format has no place for this model; None if it has."""
    config = checkpoint.config
    if to == "dit_fast":
        return None
    if config["conditioning"] != "adaln_zero":
        return f"it knows the adaLN-Zero design only, this model has {config['conditioning']}"
    if config["input_size"][0] != config["input_size"][1]:
        return f"its images are square, this model's are {' x '.join(map(str, config['input_size']))}"
    if to == "diffusers":
        return why_not_diffusers(checkpoint.weights, config)
    return "it always has labels, and this model is unconditional" if config["num_classes"] == 0 else None


def _check_target(path: Path, to: str) -> None:
    if to not in FORMATS:
        raise ValueError(f"--to must be one of {', '.join(FORMATS)}, got {to!r}")
    if path.exists():
        raise ValueError(f"the target must not exist yet, got {path}")
