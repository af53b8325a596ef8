# SPDX-License-Identifier: Apache-2.0
"""TensorBoard and Weights & Biases. Both are other people's, and imported where they are used."""

from dataclasses import asdict
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import Tensor

from dit_fast.pictures import grid

from .watch import Record, RunInfo, Watcher, scalars


class TensorBoard(Watcher):
    """Event files in `out/tensorboard`; of a run that is taken up again, the board hides what will come once more."""

    def __init__(self) -> None:
        if not find_spec("tensorboard"):
            raise ModuleNotFoundError("train: `tensorboard` needs tensorboard: pip install 'dit_fast[train]'")

    def start(self, info: RunInfo) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder = str(info.out / "tensorboard")
        self.writer: Any = SummaryWriter(folder, purge_step=info.start_step + 1 if info.start_step else None)

    def record(self, record: Record) -> None:
        for name, value in scalars(record).items():
            self.writer.add_scalar(name, value, record.step)

    def samples(self, step: int, images: Tensor, labels: Tensor | None) -> None:
        self.writer.add_image("samples", grid(images).numpy(), step, dataformats="HWC")

    def checkpoint(self, step: int, path: Path | None, seconds: float, error: str | None) -> None:
        self.writer.flush()

    def end(self, reason: str, info: RunInfo) -> None:
        self.writer.close()


class Wandb(Watcher):
    """A run of Weights & Biases. Its id is kept in `out/wandb-id.txt`, so that a run that goes on is the same there.

    Weights & Biases takes no step twice, so the step is a number among the others, by which it is told to plot.
    """

    def __init__(self, project: str) -> None:
        if not find_spec("wandb"):
            raise ModuleNotFoundError("train: `wandb` needs wandb: pip install wandb")
        self.project = project

    def start(self, info: RunInfo) -> None:
        self.wandb: Any = import_module("wandb")
        known = info.out / "wandb-id.txt"
        same = {"id": known.read_text().strip()} if info.start_step and known.is_file() else {}
        info.out.mkdir(parents=True, exist_ok=True)
        self.run = self.wandb.init(
            project=self.project, name=info.out.name, dir=str(info.out), config=asdict(info.config), resume="allow",
            **same,
        )  # fmt: skip
        known.write_text(self.run.id + "\n")
        self.run.define_metric("*", step_metric="step")

    def record(self, record: Record) -> None:
        self.run.log({**scalars(record), "step": record.step})

    def samples(self, step: int, images: Tensor, labels: Tensor | None) -> None:
        self.run.log({"samples": self.wandb.Image(grid(images).squeeze(-1).numpy()), "step": step})

    def end(self, reason: str, info: RunInfo) -> None:
        self.run.finish(exit_code=0 if reason in ("done", "stopped") else 1)
