# SPDX-License-Identifier: Apache-2.0
"""A model to sample from, wherever it lies, and what is known of how it was trained."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from dit_fast.integrations import checkpoints
from dit_fast.models import DiT, load_model, runs
from dit_fast.models.checkpoint import WEIGHTS

NAMES = "classes.json"
"""Names of the classes in the order of their ids, a JSON list beside a model's weights."""


class Opened(NamedTuple):
    """objective, noise_schedule: those of `dit_fast.train`; latents: whether that is what the model draws, None where
    nobody says it, as of class_names; notes: what the person who asked should know."""

    model: DiT
    where: str
    objective: str = "ddpm"
    noise_schedule: str = "linear"
    latents: bool | None = None
    class_names: list[str] | None = None
    notes: tuple[str, ...] = ()


def open_checkpoint(name: str, device: str) -> Opened:
    """A training run's folder (its newest checkpoint), one checkpoint of a run, a file or folder of any format that
    `dit-fast convert` reads, or a hub's `owner/name`. Of a run's models it is the averaged one.

    Raises:
        FileNotFoundError: nothing there, or a run that has no whole checkpoint yet.
        ValueError: what is there is no DiT, or damaged.
    """
    path = Path(name)
    if (path / runs.FOLDER).is_dir():
        newest = runs.newest_checkpoint(path)
        if newest is None:
            _, damaged = runs.checkpoints(path)
            raise FileNotFoundError("; ".join([f"no whole checkpoint in {path / runs.FOLDER}", *damaged.values()]))
        path = newest
    if (path / runs.MANIFEST).is_file():
        return _of_run(path, device)
    if path.exists():
        found = checkpoints.read(path)
        model, names = found.model().to(device), read_names(path)
        return Opened(model, f"{path} ({found.source})", class_names=names, notes=tuple(found.notes))
    return Opened(DiT.from_pretrained(name, device), name)


def _of_run(path: Path, device: str) -> Opened:
    manifest = runs.read_manifest(path)
    config: dict[str, Any] = manifest["config"]
    average = path / runs.AVERAGE
    model = load_model(average if average.is_file() else path / WEIGHTS, device)
    return Opened(
        model, f"{path} (step {manifest['step']})", config["objective"], config["noise_schedule"],
        manifest["data"]["kind"] == "latents", manifest.get("class_names") or read_names(path),
    )  # fmt: skip


def read_names(path: Path) -> list[str] | None:
    """Of `classes.json` beside a model's weights, if there is one."""
    file = (path if path.is_dir() else path.parent) / NAMES
    if not file.is_file():
        return None
    names = json.loads(file.read_text())
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{file} must hold a JSON list of names, in the order of the classes' ids")
    return names
