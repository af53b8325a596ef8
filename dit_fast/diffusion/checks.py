# SPDX-License-Identifier: Apache-2.0
"""Argument checks: ValueErrors that name the argument, what was expected and what came. None reads a GPU
value.

LEGEND: N batch, C channels, H height, W width, K steps of the chain.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Model = Callable[..., Tensor]


def check_image(name: str, x: Tensor) -> None:
    """x: floating point (N, C, ...)."""
    if x.dim() < 2 or not x.is_floating_point():
        raise ValueError(f"{name}: expected floating point (N, C, ...), came {x.dtype} {tuple(x.shape)}")


def check_like(name: str, value: Tensor, like_name: str, like: Tensor) -> None:
    """value: floating point, of the shape and on the device of like."""
    if value.shape != like.shape or value.device != like.device or not value.is_floating_point():
        raise ValueError(
            f"{name}: expected floating point {tuple(like.shape)} on {like.device}, as {like_name} is, "
            f"came {value.dtype} {tuple(value.shape)} on {value.device}"
        )


def check_steps(t: Tensor, x: Tensor, num_timesteps: int) -> None:
    """t: int64 (N,) on x's device. Its range is checked on the CPU only: elsewhere that would synchronise."""
    if t.dtype != torch.int64 or t.shape != x.shape[:1] or t.device != x.device:
        raise ValueError(
            f"t: expected torch.int64 ({x.shape[0]},) on {x.device}, "
            f"came {t.dtype} {tuple(t.shape)} on {t.device}"
        )
    if t.device.type == "cpu" and t.numel() and not torch.compiler.is_compiling():
        low, high = int(t.min()), int(t.max())
        if low < 0 or high >= num_timesteps:
            raise ValueError(f"t: expected values from 0 to {num_timesteps - 1}, came {low} to {high}")


def check_times(name: str, t: Tensor, x: Tensor) -> None:
    """t: floating point (N,) on x's device, in [0, 1]. The range is checked on the CPU only, as of steps."""
    if not t.is_floating_point() or t.shape != x.shape[:1] or t.device != x.device:
        raise ValueError(
            f"{name}: expected floating point ({x.shape[0]},) on {x.device}, "
            f"came {t.dtype} {tuple(t.shape)} on {t.device}"
        )
    if t.device.type == "cpu" and t.numel() and not torch.compiler.is_compiling():
        low, high = float(t.min()), float(t.max())
        if not (low >= 0 and high <= 1):  # so that NaN fails
            raise ValueError(f"{name}: expected values from 0 to 1, came {low} to {high}")


def check_generator(generator: torch.Generator | None, device: torch.device) -> None:
    """generator: None, or of the kind of device that the noise is drawn on."""
    if generator is not None and generator.device.type != device.type:
        raise ValueError(
            f"generator: expected one on {device}, where the noise is drawn, came one on {generator.device}"
        )


def check_output(out: Any, x: Tensor, learn_sigma: bool) -> Tensor:
    """The model's output for x (N, C, ...): a tensor (N, 2C, ...) if learn_sigma, else (N, C, ...)."""
    channels = x.shape[1] * (2 if learn_sigma else 1)
    expected = (x.shape[0], channels, *x.shape[2:])
    if not isinstance(out, Tensor):
        raise ValueError(f"model: expected it to return a tensor {expected}, came {type(out).__name__}")
    if out.shape != expected:
        raise ValueError(
            f"model: expected an output of shape {expected} for x {tuple(x.shape)} "
            f"with learn_sigma={learn_sigma}, came {tuple(out.shape)}"
        )
    return out


def draw_noise(like: Tensor, dtype: torch.dtype, generator: torch.Generator | None) -> Tensor:
    """N(0, 1) of like's shape on like's device."""
    check_generator(generator, like.device)
    return torch.randn(like.shape, dtype=dtype, device=like.device, generator=generator)
