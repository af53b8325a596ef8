# SPDX-License-Identifier: Apache-2.0
"""A model in one file: safetensors, the constructor's arguments as JSON in its header."""

import json
import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from .dit import DiT

HEADER = "dit_fast.config"


def save_model(model: DiT, path: str | Path) -> None:
    """Write weights and configuration to `path`, whole or not at all (a temporary file, then a rename)."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    weights = {k: v.detach().contiguous() for k, v in model.state_dict().items()}
    try:
        save_file(weights, partial, metadata={HEADER: json.dumps(model.config)})
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def load_model(path: str | Path, device: str = "cpu") -> DiT:
    """The model of a `save_model` file, in evaluation mode.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a safetensors file, cut short, or not written by `save_model`.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"load_model: no checkpoint at {path}")
    try:
        with safe_open(path, framework="pt", device=device) as file:
            header = file.metadata() or {}
            weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise ValueError(f"load_model: {path} is not a whole safetensors file: {error}") from error
    if HEADER not in header:
        raise ValueError(f"load_model: {path} holds no dit_fast configuration (header keys: {sorted(header)})")
    try:
        with torch.device("meta"):
            model = DiT(**json.loads(header[HEADER]))
        model.load_state_dict(weights, assign=True)  # in the dtypes of the file
    except (ValueError, TypeError, RuntimeError) as error:
        raise ValueError(f"load_model: the weights of {path} do not fit its configuration: {error}") from error
    return model.eval()
