# SPDX-License-Identifier: Apache-2.0
"""Train on the digits, draw them, measure, and write pictures, metrics and a checkpoint."""

import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from dit_fast.diffusion import create_diffusion
from dit_fast.models import DiT, save_model
from dit_fast.sample import sample
from dit_fast.train.loop import TrainConfig, train

from .figures import save_loss, save_samples
from .quality import Judge, digits, halves


@dataclass(frozen=True)
class DemoConfig:
    """What `make demo` runs; tests run the same with fewer steps and images."""

    steps: int = 1500
    batch_size: int = 128
    lr: float = 3e-3
    warmup: int = 100
    ema: float = 0.995
    hidden_size: int = 96
    depth: int = 3
    num_heads: int = 3
    sample_steps: int = 50
    cfg_scale: float = 2.0
    per_class: int = 50
    seed: int = 0


def run(out: Path, config: DemoConfig | None = None, device: str | None = None, progress: bool = True) -> dict:
    """Run the demo; returns the contents of `metrics.json`.

    Writes to `out`: samples.png, loss.png, metrics.json, model.safetensors (for `dit-fast sample`).
    """
    config = config or DemoConfig()
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    out.mkdir(parents=True, exist_ok=True)
    images, labels = digits()

    torch.manual_seed(config.seed)
    model = DiT(
        input_size=8, patch_size=2, in_channels=1, hidden_size=config.hidden_size, depth=config.depth,
        num_heads=config.num_heads, num_classes=10,
    ).to(device)  # fmt: skip
    options = TrainConfig(
        config.steps, config.batch_size, config.lr, betas=(0.9, 0.99), warmup=config.warmup, ema=config.ema,
        seed=config.seed,
    )  # fmt: skip
    x, y = torch.from_numpy(images).to(device), torch.from_numpy(labels).to(device)
    result = train(model, create_diffusion(""), x, y, options, progress)
    save_model(result.ema, out / "model.safetensors")
    save_loss(out / "loss.png", result.losses)

    def draw(count: int, cfg_scale: float) -> tuple[np.ndarray, np.ndarray]:
        classes = torch.arange(10, device=device).repeat_interleave(count)
        drawn = sample(
            result.ema, classes, steps=config.sample_steps, cfg_scale=cfg_scale, clip_denoised=True,
            seed=config.seed, progress=progress,
        )  # fmt: skip
        return drawn.clamp(-1, 1).cpu().numpy(), classes.cpu().numpy()

    start = time.perf_counter()
    guided, asked = draw(config.per_class, config.cfg_scale)
    plain, _ = draw(config.per_class, 1.0)
    sample_seconds = time.perf_counter() - start

    judge = Judge(images, labels)
    first, second = halves(images)
    metrics = {
        "class_match": judge.match(guided, asked),
        "class_match_unguided": judge.match(plain, asked),
        "real_accuracy": judge.real_accuracy,
        # 500 images against 898, the halves 898 against 899: a smaller sample reads as further, never as nearer
        "frechet_generated": judge.frechet(plain, first),
        "frechet_generated_guided": judge.frechet(guided, first),
        "frechet_real_halves": judge.frechet(first, second),
        "train_seconds": result.seconds,
        "images_per_second": result.images_per_second,
        "sample_seconds": sample_seconds,
        "samples": len(asked),
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": config.steps,
        "device": torch.cuda.get_device_name() if device == "cuda" else device,
        "torch": torch.__version__,
    }
    (out / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    rows = np.arange(10)[:, None] * config.per_class + np.arange(10)[None, :] % config.per_class
    real = np.concatenate([images[labels == k][:10] for k in range(10)])
    save_samples(out / "samples.png", guided[rows.ravel()], real)
    return metrics
