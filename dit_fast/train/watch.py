# SPDX-License-Identifier: Apache-2.0
"""What a run tells those who watch it."""

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from .config import TrainConfig


@dataclass(frozen=True)
class Record:
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
    config: TrainConfig
    parameters: int
    macs_per_image: int
    world_size: int
    device: str
    start_step: int
    out: Path


class Watcher:
    def start(self, info: RunInfo) -> None: ...
    def record(self, record: Record) -> None: ...
    def samples(self, step: int, images: Tensor, labels: Tensor | None) -> None: ...
    def checkpoint(self, step: int, path: Path | None, seconds: float, error: str | None) -> None: ...
    def end(self, reason: str, info: RunInfo) -> None: ...


def watchers_for(config: TrainConfig) -> list[Watcher]:
    return []
