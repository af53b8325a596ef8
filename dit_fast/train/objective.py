# SPDX-License-Identifier: Apache-2.0
"""What a step trains on besides images, drawn anew from (seed, step); and the course of the learning rate.

Nothing here has a state that changes, so any step can be drawn again, by any number of processes. N batch, C channels,
H W image.
"""

import hashlib
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dit_fast.diffusion import Diffusion, Flow, create_diffusion, create_flow
from dit_fast.models import DiT

from .config import TrainConfig

Objective = Diffusion | Flow


def make_objective(config: TrainConfig, model: DiT) -> Objective:
    """The training losses that `config` asks for, of this model."""
    if config.objective == "flow":
        return create_flow(config.flow_times)
    return create_diffusion("", noise_schedule=config.noise_schedule, learn_sigma=model.learn_sigma)


def stream(*words: int | str) -> int:
    """A seed of 64 bits for one stream of random numbers, by name: `stream(seed, "step", 7)`."""
    digest = hashlib.blake2b(repr(words).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


@dataclass(frozen=True)
class Draws:
    """Of one step and the whole batch: times (N,), noise (N, C, H, W) float32, and which labels are dropped (N,)."""

    t: Tensor
    noise: Tensor
    dropped: Tensor

    def rows(self, rows: slice) -> "Draws":
        return Draws(self.t[rows], self.noise[rows], self.dropped[rows])


def draw(
    objective: Objective, shape: tuple[int, ...], dropout: float, seed: int, step: int, device: torch.device
) -> Draws:
    """All chance of step `step` but that of the images.

    Every rank draws for the whole batch of `shape` (N, C, H, W) and takes its rows, so that the number of ranks does
    not matter. Devices of different kinds draw different numbers.
    """
    generator = torch.Generator(device).manual_seed(stream(seed, "step", step))
    t = objective.draw_times(shape[0], device=device, generator=generator)
    noise = torch.randn(shape, device=device, generator=generator)
    dropped = torch.rand(shape[0], device=device, generator=generator) < dropout
    return Draws(t, noise, dropped)


def lr_factor(step: int, config: TrainConfig) -> float:
    """Share of `lr` that step `step` is made with: a linear warm-up, then 1, or half a cosine to 0 after the last."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    if config.lr_schedule == "constant":
        return 1.0
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
