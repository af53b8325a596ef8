# SPDX-License-Identifier: Apache-2.0
"""Where a training run keeps its checkpoints, and which of them are whole.

    RUN/checkpoints/step-00010000/
        model.safetensors, ema.safetensors, config.json     weights and their average, each a model of its own
        state/                                              all that an exact resume needs besides
        manifest.json                                       written last: the step, the config, every file's size
"""

import json
import re
from pathlib import Path
from typing import Any

FORMAT, VERSION = "dit_fast.train", 1
FOLDER, MANIFEST, AVERAGE, STATE = "checkpoints", "manifest.json", "ema.safetensors", "state"

NAME = re.compile(r"step-(\d{8,})")


def checkpoint_path(run: str | Path, step: int) -> Path:
    return Path(run) / FOLDER / f"step-{step:08d}"


def step_of(checkpoint: Path) -> int:
    """Of a path as `checkpoint_path` makes it."""
    return int(checkpoint.name.removeprefix("step-"))


def read_manifest(path: str | Path) -> dict[str, Any]:
    """The manifest of a whole checkpoint.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: not a checkpoint of a training run, of a later version, or with files missing or cut short.
    """
    path = Path(path)
    if not path.is_dir():
        raise FileNotFoundError(f"no checkpoint of a training run at {path}")
    file = path / MANIFEST
    if not file.is_file():
        raise ValueError(f"{path} is not a whole checkpoint of a training run: it has no {MANIFEST}, written last")
    try:
        manifest = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file} is not whole: {error}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ValueError(f"{file} is not of a training run: `format` must be {FORMAT!r}")
    if manifest["version"] != VERSION:
        raise ValueError(f"{path}: `version` must be {VERSION}, got {manifest['version']}, a later dit_fast's")
    for name, size in manifest["files"].items():
        found = (path / name).stat().st_size if (path / name).is_file() else None
        if found != size:
            what = "is missing" if found is None else f"has {found} bytes, its manifest says {size}: cut short?"
            raise ValueError(f"{path} is not whole: {name} {what}")
    return manifest


def checkpoints(run: str | Path) -> tuple[list[Path], dict[Path, str]]:
    """The whole checkpoints of a run by step, and for each that is not whole the reason."""
    whole, damaged = [], {}
    for path in sorted(Path(run, FOLDER).glob("step-*"), key=lambda p: (len(p.name), p.name)):
        if NAME.fullmatch(path.name):
            try:
                read_manifest(path)
                whole.append(path)
            except ValueError as error:
                damaged[path] = str(error)
    return whole, damaged


def newest_checkpoint(run: str | Path) -> Path | None:
    """The whole checkpoint of the most steps."""
    whole, _ = checkpoints(run)
    return whole[-1] if whole else None
