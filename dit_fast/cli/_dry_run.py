# SPDX-License-Identifier: Apache-2.0
"""What `dit-fast train --dry-run` prints; nothing is written and no weight is made."""

from dataclasses import replace
from pathlib import Path

import torch

from dit_fast.data import TensorSource
from dit_fast.models import DiT, count_macs
from dit_fast.train import TrainConfig
from dit_fast.train.checkpoint import find_checkpoint
from dit_fast.train.distributed import connect
from dit_fast.train.engine import build_model, open_data, rows_of_rank
from dit_fast.train.memory import estimate_memory
from dit_fast.train.metrics import flops_per_image

VAE_FACTOR, CLASSES = 8, 1000
"""The paper's, to reckon with where no data is given."""


def dry_run(config: TrainConfig, ranks: int | None = None) -> str:
    """Parameters, FLOPs, memory, data, steps and where the run would begin, a line each; "" on all ranks but the first.

    Args:
        ranks: processes to reckon for; None takes those that there are.

    Raises:
        ValueError, FileNotFoundError: what the run itself would raise of its data, its sizes or its checkpoint.
    """
    here = connect()
    here.barrier()  # none leaves before all have met
    here.leave()
    if not here.first:
        return ""
    ranks = ranks or here.world
    rows = rows_of_rank(config, ranks)
    source = open_data(config) if config.data else supposed(config.image_size)
    with torch.device("meta"):
        model = build_model(config, source)
    lines = {
        "model": f"{config.model}, {sum(p.numel() for p in model.parameters()):,} parameters",
        "compute": compute(count_macs(model, *source.shape[1:])),
        "data": f"none given: reckoned for latents {source.shape} and {model.num_classes} classes",
        "length": f"{config.steps:,} steps of {config.batch_size:,} images",
        "memory": memory(model, config, ranks, rows),
        "start": start(config),
    }
    if config.data:
        names = ", ".join((source.class_names or ())[:3])
        classes = f"{source.num_classes:,} classes" + (f" ({names} ...)" if names else "")
        lines["data"] = f"{config.data}: {source.kind} {source.shape}, {len(source):,} images, {classes}"
        lines["length"] += f": {config.steps * config.batch_size / len(source):.4g} epochs"
        if len(source) < config.batch_size:
            raise ValueError(
                f"train: `batch_size` must be at most the number of images, {len(source)}, got {config.batch_size}"
            )
    return "".join(f"{title:9s}{text}\n" for title, text in lines.items())


def supposed(image_size: int) -> TensorSource:
    side = image_size // VAE_FACTOR
    return TensorSource(torch.zeros(1, 4, side, side), torch.tensor([CLASSES - 1]))


def compute(macs: int) -> str:
    return (
        f"{macs / 1e9:.4g} Gflops an image as the paper counts, multiply-adds (MACs);"
        f" {2 * macs / 1e9:.4g} GFLOPs forward, {flops_per_image(macs) / 1e9:.4g} to train on it"
    )


def memory(model: DiT, config: TrainConfig, ranks: int, rows: int) -> str:
    """An estimate; `dit_fast.train.memory` says of what, and what is left out."""
    found = estimate_memory(model, config, ranks)
    other = estimate_memory(model, replace(config, checkpointing=not config.checkpointing), ranks)
    parts = ", ".join(f"{name} {size(count)}" for name, count in vars(found).items() if count)
    many = f"each of {ranks} processes ({config.parallel})" if ranks > 1 else "one process"
    without = "without" if config.checkpointing else "with"
    return (
        f"about {size(found.total)} in {many}, {rows // config.accumulate} images at a time;"
        f" {without} checkpointing {size(other.total)}\n{'':9s}{parts}"
    )


def size(count: int) -> str:
    return f"{count / 2**30:.3g} GiB" if count >= 2**30 else f"{count / 2**20:.3g} MiB"


def start(config: TrainConfig) -> str:
    found = find_checkpoint(config.resume, Path(config.out))
    return f"anew, in {config.out}" if found is None else f"from {found}"
