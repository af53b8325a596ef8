# SPDX-License-Identifier: Apache-2.0
"""A loss or gradient that is not finite: what is kept to inspect, and the error that says so."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from dit_fast.models.checkpoint import save_folder

from .distributed import whole
from .objective import Draws

if TYPE_CHECKING:
    from .engine import Trainer

NAMED = 8
"""Images that the message names; the report has all."""


@dataclass(frozen=True)
class Batch:
    """A step's rows of this rank: x (N, C, H, W), y (N,) with labels dropped, and the loss of each (N,)."""

    step: int
    x: Tensor
    y: Tensor
    draws: Draws
    losses: Tensor


def stop(trainer: "Trainer", failed: Batch, what: str) -> NoReturn:
    """Keep the whole batch and the weights in `failed-step-N`, and raise, saying `what`. Every rank must call it."""
    ranks, step = trainer.ranks, failed.step
    batch = {
        "x": ranks.gather(failed.x), "y": ranks.gather(failed.y), "t": ranks.gather(failed.draws.t),
        "noise": ranks.gather(failed.draws.noise), "loss": ranks.gather(failed.losses),
    }  # fmt: skip
    weights = whole(dict(trainer.model.state_dict()), torch.device("cpu"), keep=ranks.first)
    identities = [trainer.source.identity(index) for index in trainer.order(step)]
    bad = [row for row, loss in enumerate(batch["loss"].tolist()) if not math.isfinite(loss)]
    folder = trainer.out / f"failed-step-{step}"
    problem = None
    if ranks.first:
        report: dict[str, Any] = {"step": step, "what": what, "rows_not_finite": bad, "images": identities}
        try:
            _write(folder, weights, trainer.model.config, batch, report)
        except (OSError, SafetensorError) as error:
            problem = str(error)
    problem = ranks.agree(problem)
    named = ", ".join(identities[row] for row in bad[:NAMED]) + (f" and {len(bad) - NAMED} more" * (len(bad) > NAMED))
    where = "holds the batch and the weights" if problem is None else f"could not be written: {problem}"
    raise FloatingPointError(f"train: {what}; images whose loss is not finite: {named or 'none'}; {folder} {where}")


def _write(
    folder: Path, weights: dict[str, Tensor], config: dict[str, Any], batch: dict[str, Tensor], report: dict[str, Any]
) -> None:
    save_folder(weights, config, folder)
    host = {name: tensor.detach().cpu().contiguous() for name, tensor in batch.items()}
    save_file(host, folder / "batch.safetensors")
    (folder / "report.json").write_text(json.dumps(report, indent=2) + "\n")
