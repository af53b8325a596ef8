# SPDX-License-Identifier: Apache-2.0
"""Reading files of others without running what is in them."""

import argparse
import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dit_fast.models.checkpoint import read_safetensors

Arguments = dict[str, Any]
"""What a model was trained with, as a training checkpoint of the release has it."""

STEM = "diffusion_pytorch_model"
PREFIXES = ("module.", "_orig_mod.")
"""What DistributedDataParallel and torch.compile put before every key."""


def is_safetensors(file: Path) -> bool:
    """Eight bytes of length, then JSON."""
    with file.open("rb") as opened:
        return opened.read(9)[8:] == b"{"


def load_pickled(file: Path) -> Any:
    """What torch.save wrote: tensors and plain values, and argparse's Namespace; nothing else is let in."""
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file) or None)
    except (OSError, MemoryError):
        raise
    except pickle.UnpicklingError as error:
        first = str(error).strip().replace("\n", " ")
        raise ValueError(f"{file} is no PyTorch checkpoint, or holds more than weights: {first}") from error
    except Exception as error:  # whatever a broken file leads to
        raise ValueError(f"{file} is no whole PyTorch checkpoint: {type(error).__name__}: {error}") from error


def load_pt(file: Path, which: str | None) -> tuple[dict[str, Tensor], Arguments, str]:
    """Weights of a `.pt`, the arguments it was trained with if it says so, and where in the file they were."""
    content = load_pickled(file)
    if not isinstance(content, dict):
        raise ValueError(f"{file} must hold a state dict, got {type(content).__name__}")
    arguments: Arguments = dict(vars(content["args"])) if isinstance(content.get("args"), argparse.Namespace) else {}
    if content and all(isinstance(value, Tensor) for value in content.values()):
        if which is not None:
            raise ValueError(f"{file} holds weights and no entries: --which must be left out, got {which!r}")
        return plain_keys(content, file), arguments, "a state dict"
    entry = which or "ema"
    if not isinstance(content.get(entry), dict):
        raise ValueError(
            f"{file} must have an entry `{entry}` with a state dict; choose with --which among"
            f" {[key for key, value in content.items() if isinstance(value, dict)]}"
        )
    return plain_keys(content[entry], file), arguments, f"its `{entry}`"


def plain_keys(weights: dict[Any, Any], file: Path) -> dict[str, Tensor]:
    for key, value in weights.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise ValueError(f"{file}: a state dict maps names to tensors, got {key!r}: {type(value).__name__}")
    for prefix in PREFIXES:
        if weights and all(key.startswith(prefix) for key in weights):
            weights = {key.removeprefix(prefix): value for key, value in weights.items()}
    return weights


def load_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} must hold a JSON object, got {type(content).__name__}")
    return content


def load_diffusers_weights(folder: Path) -> dict[str, Tensor]:
    """The tensors of a diffusers model's folder: one safetensors file, shards with an index, or the older `.bin`."""
    single, index = folder / f"{STEM}.safetensors", folder / f"{STEM}.safetensors.index.json"
    if single.is_file():
        return read_safetensors(single)[0]
    if index.is_file():
        return load_shards(index)
    if (folder / f"{STEM}.bin").is_file():
        return plain_keys(load_pickled(folder / f"{STEM}.bin"), folder / f"{STEM}.bin")
    there = sorted(path.name for path in folder.iterdir())
    raise ValueError(f"{folder} must hold {single.name}, {index.name} or {STEM}.bin, it holds {there}")


def load_shards(index: Path) -> dict[str, Tensor]:
    """Every tensor from the shard that the index names for it."""
    places = load_json(index).get("weight_map")
    if not isinstance(places, dict):
        raise ValueError(f"{index} must have a `weight_map`")
    weights: dict[str, Tensor] = {}
    for name in dict.fromkeys(places.values()):
        shard = index.parent / str(name)
        if Path(str(name)).name != name or not shard.is_file():
            raise ValueError(f"{index} names the shard {name!r}, which is not in its folder")
        held = read_safetensors(shard)[0]
        unlike = sorted(set(held) ^ {key for key, place in places.items() if place == name})
        if unlike:
            raise ValueError(f"{index} and {shard.name} must hold the same keys, `{unlike[0]}` is in one only")
        weights |= held
    return weights
