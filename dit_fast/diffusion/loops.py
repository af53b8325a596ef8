# SPDX-License-Identifier: Apache-2.0
"""What all sampling loops share: where they start, the progress bar, the last sample."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from dit_fast.diffusion.checks import Model, check_generator

Device = torch.device | str | int | None


def last_sample(steps: Iterator[dict[str, Tensor]]) -> Tensor:
    """The `sample` of the last step."""
    for out in steps:
        sample = out["sample"]
    return sample


def with_bar(steps: Iterable[int], progress: bool) -> Iterable[int]:
    """The steps, under tqdm's bar if `progress`."""
    if not progress:
        return steps
    try:
        bar: Callable[..., Iterable[int]] = importlib.import_module("tqdm.auto").tqdm
    except ImportError as error:
        raise ImportError("progress=True needs the package tqdm: pip install tqdm") from error
    return bar(steps)


def start_noise(
    model: Model,
    shape: Sequence[int],
    noise: Tensor | None,
    device: Device,
    generator: torch.Generator | None,
) -> Tensor:
    """What a loop starts from: the noise that was given, checked against shape and device, or fresh noise."""
    wanted = None if device is None else torch.device(device)
    if noise is None:
        place = _device_of(model) if wanted is None else wanted
        check_generator(generator, place)
        return torch.randn(tuple(shape), device=place, generator=generator)
    if noise.shape != tuple(shape) or not noise.is_floating_point():
        raise ValueError(
            f"noise: expected floating point {tuple(shape)}, came {noise.dtype} {tuple(noise.shape)}"
        )
    if wanted is not None and (
        wanted.type != noise.device.type or wanted.index not in (None, noise.device.index)
    ):
        raise ValueError(f"device: expected noise's device {noise.device}, came {wanted}")
    return noise


def _device_of(model: Any) -> torch.device:
    """Where the parameters of a module (or of a bound method's module) are; else torch's default device."""
    owner = getattr(model, "__self__", model)
    if isinstance(owner, torch.nn.Module):
        for parameter in owner.parameters():
            return parameter.device
    return torch.get_default_device()
