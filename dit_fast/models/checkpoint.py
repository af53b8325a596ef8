# SPDX-License-Identifier: Apache-2.0
"""A model on disk: one safetensors file with the constructor's arguments as JSON in its header, or a folder with that
file, `model.safetensors`, and the same arguments in a `config.json`."""

import json
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dit_fast.files import whole_or_not

from .dit import DiT
from .runs import AVERAGE, FOLDER, newest_checkpoint

HEADER = "dit_fast.config"
WEIGHTS, CONFIG = "model.safetensors", "config.json"

Model = TypeVar("Model", bound=DiT)


def save_weights(weights: dict[str, Tensor], config: dict[str, Any], path: Path) -> None:
    """One file, whole or not at all (a temporary file, then a rename)."""
    dense = {k: v.detach().contiguous() for k, v in weights.items()}
    with whole_or_not(path) as partial:
        save_file(dense, partial, metadata={HEADER: json.dumps(config)})


def save_model(model: DiT, path: str | Path) -> None:
    """Write weights and configuration to the file `path`, whole or not at all."""
    save_weights(model.state_dict(), model.config, Path(path))


def save_folder(weights: dict[str, Tensor], config: dict[str, Any], folder: str | Path) -> None:
    """`model.safetensors` and `config.json` in `folder`, each whole or not at all; other files there stay."""
    folder = Path(folder)
    save_weights(weights, config, folder / WEIGHTS)
    with whole_or_not(folder / CONFIG) as partial:
        partial.write_text(json.dumps(config, indent=2) + "\n")


def load_model(path: str | Path, device: str = "cpu") -> DiT:
    """The model of a `save_model` file or a `save_folder` folder, in evaluation mode.

    Of a training run's checkpoint the averaged weights, which samples are drawn with; of a run's folder those of its
    newest checkpoint.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a safetensors file, cut short, or not written by `save_model`.
    """
    return load_as(DiT, path, device)


def load_as(kind: type[Model], path: str | Path, device: str = "cpu") -> Model:
    """`load_model` for a subclass of DiT with the same constructor."""
    weights, config = load_weights(path, device)
    try:
        with torch.device("meta"):
            model = kind(**config)
        model.load_state_dict(weights, assign=True)  # in the dtypes of the file
    except (ValueError, TypeError, RuntimeError) as error:
        raise ValueError(f"load_model: the weights of {path} do not fit its configuration: {error}") from error
    return model.eval()


def load_weights(path: str | Path, device: str = "cpu") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights and configuration of a file or folder, as they lie there."""
    path = Path(path)
    if (path / FOLDER).is_dir() and not (path / WEIGHTS).is_file():
        path = newest_checkpoint(path) or path
    file = path
    if path.is_dir():
        file = path / (AVERAGE if (path / AVERAGE).is_file() else WEIGHTS)
    if not file.is_file():
        other = "; `dit-fast convert` reads those of others" if path.is_dir() else ""
        raise FileNotFoundError(f"load_model: no checkpoint at {file}{other}")
    weights, header = read_safetensors(file, device)
    configs = [parse_config(header[HEADER], path)] if HEADER in header else []
    if path.is_dir() and (path / CONFIG).is_file():
        configs.append(parse_config((path / CONFIG).read_text(), path))
    if not configs:
        raise ValueError(f"load_model: {path} holds no dit_fast configuration (header keys: {sorted(header)})")
    unlike = sorted(k for k in {**configs[0], **configs[-1]} if configs[0].get(k) != configs[-1].get(k))
    if unlike:
        raise ValueError(
            f"load_model: {CONFIG} and the header of {file.name} in {path} must agree, "
            f"they differ in {', '.join(unlike)}"
        )
    return weights, configs[0]


def read_safetensors(file: Path, device: str = "cpu") -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and header of one file."""
    try:
        with safe_open(file, framework="pt", device=device) as opened:
            return {key: opened.get_tensor(key) for key in opened.keys()}, opened.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"load_model: {file} is not a whole safetensors file: {error}") from error


def parse_config(text: str, path: Path) -> dict[str, Any]:
    try:
        config = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"load_model: the weights of {path} do not fit its configuration: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"load_model: the configuration of {path} must be a JSON object, got {type(config).__name__}")
    return config
