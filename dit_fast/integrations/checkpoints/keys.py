# SPDX-License-Identifier: Apache-2.0
"""The keys and shapes that a checkpoint must have, and a message for each that does not fit."""

import difflib
from collections.abc import Collection, Mapping
from typing import Any

import torch

from dit_fast.models import DiT

Shapes = Mapping[str, tuple[int, ...]]

SHOWN = 5
"""Problems in one message: a wrong depth alone would name hundreds."""


def expected_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The state dict of a DiT of this configuration."""
    with torch.device("meta"):
        return {key: tuple(value.shape) for key, value in DiT(**config).state_dict().items()}


def shapes_of(weights: Mapping[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in weights.items()}


def nearest(key: str, known: Collection[str]) -> str:
    found = difflib.get_close_matches(key, known, n=1)
    return f" (nearest: `{found[0]}`)" if found else ""


def check_keys(found: Shapes, expected: Shapes, where: str) -> None:
    """Every key there, none besides, each of its shape; else a ValueError that names them with the nearest."""
    missing = [key for key in expected if key not in found]
    extra = [key for key in found if key not in expected]
    problems = [f"`{key}` is missing{nearest(key, extra)}" for key in missing]
    problems += [f"`{key}` is not known{nearest(key, expected)}" for key in extra]
    problems += [
        f"`{key}` must have shape {expected[key]}, got {found[key]}"
        for key in expected if key in found and found[key] != expected[key]
    ]  # fmt: skip
    if problems:
        more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise ValueError(f"{where} does not hold the weights of such a DiT: {'; '.join(problems[:SHOWN])}{more}")
