# SPDX-License-Identifier: Apache-2.0
"""What a run tells those who watch it, on rank 0. N images, H W C their pixels."""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from torch import Tensor

from .config import TrainConfig


@dataclass(frozen=True)
class Record:
    """Of the steps since the last record, over all ranks.

    Attributes:
        step: updates made so far.
        loss: mean over the steps.
        grad_norm: of the last step, before it is clipped.
        lr: of the last step.
        images: seen so far, in the whole run.
        images_per_second: in these steps, checkpoints and drawings not counted.
        seconds: of the whole run so far.
        tflops: achieved, by the paper's count of the model: 2 FLOPs a multiply-add, forward once and backward twice.
        mfu: `tflops` over the dense peak of all devices; None where the peak is not known.
        memory_bytes: the most so far, on rank 0: allocated on a GPU, resident on a CPU.
    """

    step: int
    loss: float
    grad_norm: float | None
    lr: float
    images: int
    images_per_second: float
    seconds: float
    tflops: float
    mfu: float | None
    memory_bytes: int


@dataclass(frozen=True)
class RunInfo:
    """Of a run, or of its part since it was taken up again at `start_step`.

    Attributes:
        macs_per_image: multiply-adds of one image's forward (the paper's count).
        device: its name, "cpu" for a CPU.
        peak_tflops: dense, of one device; None where it is not known.
    """

    config: TrainConfig
    parameters: int
    macs_per_image: int
    world_size: int
    device: str
    start_step: int
    out: Path
    peak_tflops: float | None = None


class Watcher:
    """Subclass what you need. One that raises is reported, told no more, and does not stop the run."""

    def start(self, info: RunInfo) -> None:
        """Before the first step of this process."""

    def record(self, record: Record) -> None:
        """Each `log_every` steps, and after the last."""

    def samples(self, step: int, images: Tensor, labels: Tensor | None) -> None:
        """Images (N, H, W, C) uint8 of labels (N,), drawn with the averaged weights."""

    def checkpoint(self, step: int, path: Path | None, seconds: float, error: str | None) -> None:
        """Saved at `path`, or not for the reason `error`."""

    def end(self, reason: str, info: RunInfo) -> None:
        """After the last step: "done", "stopped", or the error that ends the run."""


def scalars(record: Record) -> dict[str, float]:
    """A record's numbers by the names they have on boards; those that are not known are left out."""
    named = {
        "loss": record.loss, "lr": record.lr, "grad_norm": record.grad_norm, "images": record.images,
        "throughput/images_per_second": record.images_per_second, "throughput/tflops": record.tflops,
        "throughput/mfu": record.mfu, "memory/bytes": record.memory_bytes,
    }  # fmt: skip
    return {name: value for name, value in named.items() if value is not None}


def watchers_for(config: TrainConfig) -> list[Watcher]:
    """Those that `config` asks for; nothing is written before they are told of a start.

    Raises:
        ModuleNotFoundError: `tensorboard` or `wandb` is asked for and not installed.
    """
    from .boards import TensorBoard, Wandb
    from .files import JsonLog, SampleFiles
    from .progress_bar import ProgressBar
    from .summary import Summary

    watchers: list[Watcher] = [JsonLog(), SampleFiles()]
    if config.tensorboard or (config.tensorboard is None and find_spec("tensorboard")):
        watchers.append(TensorBoard())
    if config.wandb is not None:
        watchers.append(Wandb(config.wandb))
    if config.progress:
        watchers.append(ProgressBar())
    return [*watchers, Summary()]  # last: it reads what the log wrote
