# SPDX-License-Identifier: Apache-2.0
"""Train on the digits, draw them, measure, and write pictures, metrics and a checkpoint."""

import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from dit_fast.models import save_model
from dit_fast.sample import sample
from dit_fast.train import Trainer
from dit_fast.train.configfile import load_config
from dit_fast.train.progress_bar import ProgressBar

from .figures import save_loss, save_samples
from .quality import Judge, digits, halves


@dataclass(frozen=True)
class DemoConfig:
    """What `make demo` runs; tests run the same with fewer steps and images. `dit-fast train --preset digits` trains
    the same model."""

    steps: int = 1500
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

    told = {"steps": config.steps, "seed": config.seed, "save_every": 0, "sample_every": 0, "out": str(out)}
    result = Trainer(
        load_config("digits", None, told), watchers=[ProgressBar()] if progress else [], device=device
    ).run()
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
        "parameters": sum(p.numel() for p in result.ema.parameters()),
        "steps": config.steps,
        "device": torch.cuda.get_device_name() if device == "cuda" else device,
        "torch": torch.__version__,
    }
    (out / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    rows = np.arange(10)[:, None] * config.per_class + np.arange(10)[None, :] % config.per_class
    real = np.concatenate([images[labels == k][:10] for k in range(10)])
    save_samples(out / "samples.png", guided[rows.ravel()], real)
    return metrics
