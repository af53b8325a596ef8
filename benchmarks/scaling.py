# SPDX-License-Identifier: Apache-2.0
"""Does quality grow with compute, as the paper finds? (arXiv 2212.09748, figure 8: correlation -0.93)

    python -m benchmarks.scaling --quick                 # 9 models on the 8 x 8 digits, at most 20 minutes on 2 cores
    python -m benchmarks.scaling --latents CACHE         # on a latent cache of `dit-fast encode`

Models with the shape of DiT-S (32 of width for each block of depth) at several sizes and patch sizes train for equal
steps with equal settings, then draw without guidance; the Frechet distance of what they draw to the data is set against
their Gflops as the paper counts them. Digits are compared by the features of a classifier trained on real ones
(`dit_fast.demo.quality`); latents by their means over a grid of 4 x 4 cells, which see coarse structure only and are no
FID. What is measured is kept after each model, and a killed run goes on from its last checkpoint.
"""

import argparse
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from dit_fast.bench.environment import environment
from dit_fast.data import Source, open_source
from dit_fast.demo.quality import Judge, frechet, halves
from dit_fast.files import whole_or_not
from dit_fast.models.macs import count_macs
from dit_fast.sample import Sampler
from dit_fast.train import TrainConfig, Trainer
from dit_fast.train.engine import build_model
from dit_fast.train.progress_bar import ProgressBar

PAPER = -0.93
WIDTH_PER_BLOCK = 32  # DiT-S: 384 / 12
HEAD_DIM = 32  # DiT-S has 64, which the narrowest of these models could not have


@dataclass(frozen=True)
class Settings:
    """What all models of a run share; results of other settings are not comparable."""

    data: str = "digits"
    depths: tuple[int, ...] = (1, 2, 3, 4, 6)
    patches: tuple[int, ...] = (4, 2, 1)
    max_gflops: float | None = None  # larger models are left out
    steps: int = 5000
    batch_size: int = 128
    lr: float = 3e-3
    lr_schedule: Literal["constant", "cosine"] = "cosine"
    warmup: int = 100
    ema: float = 0.995
    samples: int = 1797
    sample_steps: int = 50
    seed: int = 0

    def config(self, depth: int, patch: int, out: Path, device: str) -> TrainConfig:
        width = WIDTH_PER_BLOCK * depth
        return TrainConfig(
            data=self.data, workers=0, model="DiT",
            model_args={"hidden_size": width, "depth": depth, "num_heads": width // HEAD_DIM, "patch_size": patch},
            steps=self.steps, batch_size=self.batch_size, lr=self.lr, lr_schedule=self.lr_schedule, warmup=self.warmup,
            betas=(0.9, 0.99), ema=self.ema, seed=self.seed, precision="bf16" if device == "cuda" else "float32",
            out=str(out), save_every=500, keep=1, sample_every=0, tensorboard=False, progress=True,
        )  # fmt: skip


QUICK = Settings(depths=(1, 2, 3, 4), max_gflops=0.01, steps=1500, samples=1000)
LATENTS = Settings(
    depths=(2, 4, 6, 8, 12), patches=(8, 4, 2), steps=20_000, warmup=500, lr=1e-4, lr_schedule="constant", ema=0.999,
    samples=5000,
)  # fmt: skip

Distance = Callable[[np.ndarray], float]
"""To the data, of images (N, C, H, W)."""


def yardstick(source: Source, seed: int = 0) -> tuple[Distance, float]:
    """The distance to the data, or 10,000 of them, and what it is between two halves of those: models end above it."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(source), generator=generator)[:10_000].tolist()  # a cache may be sorted by class
    examples = [source.example(i, generator) for i in chosen]
    images = torch.stack([image for image, _ in examples]).numpy()
    first, second = halves(images, seed)
    features: Callable[[np.ndarray], np.ndarray] = pooled
    if source.kind == "pixels":
        features = Judge(images, np.array([label for _, label in examples]), seed).features
    real = features(images)
    return lambda drawn: frechet(features(drawn), real), frechet(features(first), features(second))


def pooled(latents: np.ndarray) -> np.ndarray:
    """(N, C, H, W) -> (N, 16 C): means over a grid of 4 x 4 cells."""
    return torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(latents), 4).flatten(1).numpy()


def measure(config: TrainConfig, settings: Settings, source: Source, distance: Distance, device: str) -> dict[str, Any]:
    """Train one model, draw with its averaged weights, and compare: a row of the result."""
    result = Trainer(config, source, watchers=[ProgressBar()] if config.progress else [], device=device).run()
    if result.reason != "done":
        raise SystemExit(f"{config.out}: {result.reason} at step {result.steps}; the same command goes on from there")
    start = time.perf_counter()
    sampler = Sampler(result.ema, steps=settings.sample_steps, clip_denoised=source.kind == "pixels")
    asked = labels_like(source, settings.samples, settings.seed) if source.num_classes else settings.samples
    drawn = sampler(asked, seed=settings.seed, batch_size=250, progress=config.progress).cpu().numpy()
    sizes = config.model_args
    return {
        "name": name_of(config), "width": sizes["hidden_size"], "depth": sizes["depth"], "patch": sizes["patch_size"],
        "parameters": sum(p.numel() for p in result.ema.parameters()),
        "gflops": count_macs(result.ema, *source.shape[1:]) / 1e9,
        "frechet": distance(drawn), "images_per_second": result.images_per_second, "train_seconds": result.seconds,
        "sample_seconds": time.perf_counter() - start,
    }  # fmt: skip


def labels_like(source: Source, count: int, seed: int) -> list[int]:
    """Labels as frequent as the data's."""
    places = torch.randint(0, len(source), (count,), generator=torch.Generator().manual_seed(seed))
    return [source.label(i) for i in places.tolist()]


def name_of(config: TrainConfig) -> str:
    sizes = config.model_args
    return f"{sizes['hidden_size']}x{sizes['depth']}/{sizes['patch_size']}"


def correlations(rows: list[dict[str, Any]]) -> dict[str, float | None]:
    """Pearson's r of log Gflops with the distance and with its logarithm; None of fewer than three models."""
    if len(rows) < 3:
        return {"frechet": None, "log_frechet": None}
    flops, distances = (np.array([row[key] for row in rows]) for key in ("gflops", "frechet"))
    return {
        "frechet": float(np.corrcoef(np.log(flops), distances)[0, 1]),
        "log_frechet": float(np.corrcoef(np.log(flops), np.log(distances))[0, 1]),
    }


def run(settings: Settings, file: Path, runs: Path, device: str = "cpu", progress: bool = True) -> dict[str, Any]:
    """All models, smallest first; `file` holds what is measured so far and is gone on from.

    Raises ValueError where `file` is of other settings.
    """
    asked = json.loads(json.dumps(asdict(settings)))
    result: dict[str, Any] = {"schema": 1, "settings": asked, "rows": []}
    if file.exists():
        result = json.loads(file.read_text())
        if result["settings"] != asked:
            raise ValueError(f"{file}: expected a run with settings {asked}, got one with {result['settings']}")
    source = open_source(settings.data, flip=False)
    distance, floor = yardstick(source, settings.seed)
    result |= {"environment": environment(device), "frechet_real_halves": floor, "paper_correlation": PAPER}
    configs = [
        settings.config(depth, patch, runs / f"{WIDTH_PER_BLOCK * depth}x{depth}-{patch}", device)
        for depth in settings.depths for patch in settings.patches
    ]  # fmt: skip
    cost = {name_of(c): count_macs(build_model(c, source), *source.shape[1:]) / 1e9 for c in configs}
    most = settings.max_gflops or math.inf
    left_out = {row["name"] for row in result["rows"]} | {name for name, gflops in cost.items() if gflops > most}
    waiting = sorted((c for c in configs if name_of(c) not in left_out), key=lambda c: cost[name_of(c)])
    for i, config in enumerate(waiting):
        row = measure(config, settings, source, distance, device)
        result["rows"].append(row)
        result["correlation"] = correlations(result["rows"])
        with whole_or_not(file) as partial:
            partial.write_text(json.dumps(result, indent=1) + "\n")
        if progress:
            left = minutes_left(result["rows"], [cost[name_of(c)] for c in waiting[i + 1 :]])
            print(line(row) + ("" if left is None else f"   about {left:.0f} min left"), flush=True)
    return result


def minutes_left(rows: list[dict[str, Any]], gflops: list[float]) -> float | None:
    """What models of these Gflops will take: a model's time is a constant and its Gflops times another."""
    if len(rows) < 3:
        return None
    spent = [row["train_seconds"] + row["sample_seconds"] for row in rows]
    each, constant = np.polyfit([row["gflops"] for row in rows], spent, 1)
    if each < 0:  # so few and so small that noise decides
        each, constant = 0.0, float(np.mean(spent))
    return float(sum(constant + each * g for g in gflops)) / 60


def line(row: dict[str, Any]) -> str:
    return (
        f"{row['name']:10s}{row['parameters']:10,d} parameters{row['gflops']:11.6f} Gflops   Frechet"
        f"{row['frechet']:9.3f}   {row['train_seconds']:6.0f} s of training{row['sample_seconds']:6.0f} s of sampling"
    )


def plot(result: dict[str, Any], path: Path) -> None:
    """Frechet distance over Gflops, a colour for each patch size, sizes of a patch size joined."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = sorted(result["rows"], key=lambda row: row["gflops"])
    figure, axis = plt.subplots(figsize=(7, 4.5), dpi=120)
    for patch in sorted({row["patch"] for row in rows}, reverse=True):
        own = [row for row in rows if row["patch"] == patch]
        axis.plot([r["gflops"] for r in own], [r["frechet"] for r in own], "o-", label=f"patch {patch}", linewidth=0.8)
        for row in own:
            label = row["name"].partition("/")[0]
            axis.annotate(label, (row["gflops"], row["frechet"]), (4, 4), textcoords="offset points", fontsize=7)
    axis.axhline(result["frechet_real_halves"], color="0.6", linestyle=":", linewidth=1, label="two halves of the data")
    settings, r = result["settings"], result["correlation"]
    title = f"{settings['data']}, {settings['steps']} steps of {settings['batch_size']} images"
    if r["frechet"] is not None:
        title += f"; r = {r['frechet']:.2f} ({r['log_frechet']:.2f} with its logarithm)"
    axis.set(xscale="log", yscale="log", xlabel="Gflops of a forward pass (multiply-adds, as the paper counts)",
             ylabel="Frechet distance", title=title)  # fmt: skip
    axis.legend()
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    plt.close(figure)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="fewer, smaller models and steps")
    parser.add_argument("--latents", metavar="CACHE", help="train on a latent cache, not the digits")
    parser.add_argument("--steps", type=int, help="of training")
    parser.add_argument("--json", type=Path, help="what is measured (default: results.json in --runs)")
    parser.add_argument("--plot", type=Path, help="the picture (default: scaling.png in --runs)")
    parser.add_argument("--runs", type=Path, default=Path("runs/scaling"), help="folder for the models")
    arguments = parser.parse_args(argv)
    settings = QUICK if arguments.quick else Settings()
    told: dict[str, Any] = {} if arguments.steps is None else {"steps": arguments.steps}
    if arguments.latents:
        settings = LATENTS
        told["data"] = arguments.latents
    device = "cuda" if torch.cuda.is_available() else "cpu"
    start = time.perf_counter()
    file = arguments.json or arguments.runs / "results.json"
    result = run(Settings(**{**asdict(settings), **told}), file, arguments.runs, device)
    picture = arguments.plot or arguments.runs / "scaling.png"
    plot(result, picture)
    for row in sorted(result["rows"], key=lambda row: row["gflops"]):
        print(line(row))
    print(f"two halves of the data: {result['frechet_real_halves']:.3f}")
    print(f"correlation of log Gflops with the distance: {result['correlation']['frechet']} (the paper: {PAPER})")
    print(f"{(time.perf_counter() - start) / 60:.1f} min; {file}, {picture}")


if __name__ == "__main__":
    main()
