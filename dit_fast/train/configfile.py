# SPDX-License-Identifier: Apache-2.0
"""A configuration from a preset, a YAML file and flags; and back to YAML."""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from dit_fast.files import whole_or_not

from .config import TrainConfig
from .presets import PRESETS
from .values import fail, nearest, read_dict

FIELDS = [field.name for field in dataclasses.fields(TrainConfig)]


def load_config(
    preset: str | None = None, yaml_path: str | Path | None = None, flags: Mapping[str, Any] | None = None
) -> TrainConfig:
    """Flags over the YAML file over the preset over the defaults, field by field.

    Args:
        preset: a name of `PRESETS`; None takes the file's `preset:`, where it has one.
        yaml_path: a file of fields; its keys are the fields of `TrainConfig`, and `preset`.
        flags: fields; text is read as in the file. `model_args` adds to what lies below it key by key, unless `model`
            is named beside it.

    Raises:
        FileNotFoundError: no such file.
        ValueError: an unknown key (the nearest known one is named), or a bad value.
    """
    file = read_yaml(Path(yaml_path)) if yaml_path is not None else {}
    named = file.pop("preset", None)
    preset = preset if preset is not None else named
    if preset is not None and preset not in PRESETS:
        fail("preset", f"one of {', '.join(PRESETS)}", preset, nearest(str(preset), PRESETS))
    merged: dict[str, Any] = {}
    for layer, where in ((PRESETS[preset] if preset else {}, "preset"), (file, str(yaml_path)), (flags or {}, "flags")):
        merged = put_over(merged, dict(layer), where)
    return TrainConfig(**merged)


def put_over(below: dict[str, Any], above: dict[str, Any], where: str) -> dict[str, Any]:
    """`above` over `below`. Another `model` drops the `model_args` below it: they were another model's."""
    for key in above:
        if key not in FIELDS:
            raise ValueError(f"train: unknown key `{key}` in {where}{nearest(str(key), FIELDS)}")
    below = dict(below)
    if above.get("model", below.get("model")) != below.get("model"):
        below.pop("model_args", None)
    if "model_args" in above:
        own = read_dict("model_args", above["model_args"] or {})
        above = {**above, "model_args": {**below.get("model_args", {}), **own}}
    return {**below, **above}


def read_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"train: no configuration at {path}")
    try:
        found = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"train: {path} is not YAML: {error}") from error
    if not isinstance(found or {}, dict):
        raise ValueError(f"train: {path} must hold `key: value` lines, got {type(found).__name__}")
    return found or {}


def save_config(config: TrainConfig, path: str | Path) -> None:
    """Every field, as `load_config` reads it; the file is whole or not there."""
    fields = {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(config).items()}
    with whole_or_not(Path(path)) as partial:
        partial.write_text(yaml.safe_dump(fields, sort_keys=False))


def field_help() -> dict[str, str]:
    """Field to its line in the docstring of `TrainConfig`."""
    attributes = (TrainConfig.__doc__ or "").partition("Attributes:")[2].partition("Raises:")[0]
    entry = re.compile(r"^ {8}(\w+(?:, \w+)*): (.*(?:\n {12}.*)*)", re.M)
    return {
        name: re.sub(r"\s+", " ", text) for names, text in entry.findall(attributes) for name in names.split(", ")
    }
