# SPDX-License-Identifier: Apache-2.0
"""The training loop: noise-prediction loss, AdamW, EMA. N batch, C channels, H W image."""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from dit_fast.diffusion import Diffusion
from dit_fast.models import DiT


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
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0
    images_per_second: float = 0.0


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
    optimizer = torch.optim.AdamW(
        model.parameters(), config.lr, betas=config.betas, weight_decay=config.weight_decay, fused=True
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: lr_factor(step, config))
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(config.ema))
    averaged.n_averaged += 1  # it holds the initial weights; at 0 its first update would replace them
    result = TrainResult(ema=cast(DiT, averaged.module))
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
            averaged.update_parameters(model)
            result.losses.append(loss.item())
            if not math.isfinite(result.losses[-1]):
                raise FloatingPointError(f"train: the loss of step {step} is {result.losses[-1]}")
            elapsed = time.perf_counter() - start
            rate = (step + 1) * config.batch_size / elapsed
            bar.set_postfix(loss=f"{sum(result.losses[-50:]) / len(result.losses[-50:]):.4f}", images_s=f"{rate:.0f}")
            bar.update()
    result.seconds = time.perf_counter() - start
    result.images_per_second = config.steps * config.batch_size / result.seconds
    result.ema.eval()
    return result


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
