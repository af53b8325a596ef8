# SPDX-License-Identifier: Apache-2.0
"""The training loop: noise-prediction loss, AdamW, EMA. N batch, C channels, H W image."""

import copy
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from dit_fast.diffusion import Diffusion
from dit_fast.models import DiT
from dit_fast.optim import AdamWEMA


@dataclass(frozen=True)
class TrainConfig:
    """One run on one device.

    Attributes:
        steps, batch_size: length of the run; images a step, drawn with a fresh shuffle each epoch.
        lr, weight_decay, betas: AdamW's. `lr` rises linearly over `warmup` steps and falls as a half cosine to 0.
        ema: decay of the averaged weights, which start from the initial ones (DiT, section 4).
        seed: of the data order, timesteps and noise.
    """

    steps: int
    batch_size: int
    lr: float = 1e-4
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    warmup: int = 0
    ema: float = 0.9999
    seed: int = 0


@dataclass
class TrainResult:
    """The averaged model, each step's loss, and how long it took."""

    ema: DiT
    losses: list[float]
    seconds: float
    images_per_second: float


def train(
    model: DiT, diffusion: Diffusion, images: Tensor, labels: Tensor, config: TrainConfig, progress: bool = True
) -> TrainResult:
    """Train on tensors held in memory.

    Args:
        images: (M, C, H, W) in [-1, 1], on the model's device.
        labels: (M,) integer classes.

    Raises:
        FloatingPointError: the loss is not finite; the message names the step.
    """
    generator = torch.Generator(device=images.device).manual_seed(config.seed)
    torch.manual_seed(config.seed)  # label dropout
    optimizer = AdamWEMA(
        model.parameters(), config.lr, betas=config.betas, weight_decay=config.weight_decay, ema_decay=config.ema
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: lr_factor(step, config))
    losses: list[float] = []
    batches = shuffled(len(images), config.batch_size, generator)
    model.train()
    start = time.perf_counter()
    with tqdm(total=config.steps, desc="training", unit="step", disable=not progress, mininterval=0.5) as bar:
        for step in range(config.steps):
            chosen = next(batches)
            x, y = images[chosen], labels[chosen]
            t = torch.randint(0, diffusion.num_timesteps, y.shape, device=x.device, generator=generator)
            noise = torch.randn(x.shape, device=x.device, dtype=x.dtype, generator=generator)
            loss = diffusion.training_losses(model, x, t, {"y": y}, noise)["loss"].mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
            if not math.isfinite(losses[-1]):
                raise FloatingPointError(f"train: the loss of step {step} is {losses[-1]}")
            elapsed = time.perf_counter() - start
            rate = (step + 1) * config.batch_size / elapsed
            bar.set_postfix(loss=f"{sum(losses[-50:]) / len(losses[-50:]):.4f}", images_s=f"{rate:.0f}")
            bar.update()
    seconds = time.perf_counter() - start
    with optimizer.averaged_parameters():
        averaged = copy.deepcopy(model).eval()
    return TrainResult(averaged, losses, seconds, config.steps * config.batch_size / seconds)


def lr_factor(step: int, config: TrainConfig) -> float:
    """Linear warm-up, then half a cosine, 0 after the last step."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def shuffled(size: int, batch: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Endless batches of indices (batch,): every epoch a new permutation, its last incomplete batch left out."""
    if batch > size:
        raise ValueError(f"train: `batch_size` must be at most the number of images, {size}, got {batch}")
    while True:
        order = torch.randperm(size, generator=generator, device=generator.device)
        yield from order[: size // batch * batch].split(batch)
