# SPDX-License-Identifier: Apache-2.0
"""Counts and clocks of a run, and telling its watchers."""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from .metrics import memory_bytes, throughput
from .watch import Record, RunInfo, Watcher

LOG = logging.getLogger("dit_fast")


class Progress:
    """What has happened since this process took the run up; `before` are the seconds that it had taken until then.

    A watcher that raises is told no more: the run does not depend on it.
    """

    def __init__(self, info: RunInfo, watchers: Sequence[Watcher], before: float) -> None:
        self.info, self.watchers = info, list(watchers)
        self.losses: list[float] = []
        self._before, self._start = before, time.perf_counter()
        self._recorded = (0, self._start)  # losses and time at the last record
        self._tell("start", info)

    @property
    def seconds(self) -> float:
        """Of this process."""
        return time.perf_counter() - self._start

    @property
    def all_seconds(self) -> float:
        """Of the whole run."""
        return self._before + self.seconds

    @property
    def images_per_second(self) -> float:
        return len(self.losses) * self.info.config.batch_size / self.seconds

    def step(self, loss: float) -> None:
        self.losses.append(loss)

    def record(self, step: int, norm: float, lr: float) -> None:
        """The mean loss since the last record, and the last step's norm of the gradient and learning rate."""
        count, now = len(self.losses), time.perf_counter()
        since, then = self._recorded
        self._recorded = count, now
        info, batch = self.info, self.info.config.batch_size
        speed = throughput((count - since) * batch, now - then, info.macs_per_image, info.peak_tflops, info.world_size)
        self._tell(
            "record",
            Record(
                step, sum(self.losses[since:]) / (count - since), norm, lr, step * batch, speed.images_per_second,
                self.all_seconds, speed.tflops, speed.mfu, memory_bytes("cpu" if info.device == "cpu" else "cuda"),
            ),
        )  # fmt: skip

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Time that is no training, and does not count in a record's rates."""
        start = time.perf_counter()
        yield
        count, then = self._recorded
        self._recorded = count, then + time.perf_counter() - start

    def samples(self, step: int, images: Tensor, labels: Tensor | None) -> None:
        self._tell("samples", step, images, labels)

    def checkpoint(self, step: int, path: Path | None, seconds: float, error: str | None) -> None:
        self._tell("checkpoint", step, path, seconds, error)

    def end(self, reason: str) -> None:
        self._tell("end", reason, self.info)

    def _tell(self, event: str, *arguments: object) -> None:
        for watcher in [*self.watchers]:
            try:
                getattr(watcher, event)(*arguments)
            except Exception:
                LOG.exception("train: %s failed at `%s` and is told no more", type(watcher).__name__, event)
                self.watchers.remove(watcher)
