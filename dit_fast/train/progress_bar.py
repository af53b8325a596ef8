# SPDX-License-Identifier: Apache-2.0
"""A run on standard error."""

import sys
from typing import Any

from tqdm import tqdm

from .watch import Record, RunInfo, Watcher


class ProgressBar(Watcher):
    """A bar that moves with each record; where standard error is no terminal, a line a record."""

    bar: Any = None

    def start(self, info: RunInfo) -> None:
        self.steps = info.config.steps
        if sys.stderr.isatty():
            self.bar = tqdm(total=self.steps, initial=info.start_step, desc="training", unit="step", mininterval=0)

    def record(self, record: Record) -> None:
        numbers = {"loss": f"{record.loss:.4f}", "images/s": f"{record.images_per_second:.4g}"}
        if record.mfu is not None:
            numbers["MFU"] = f"{record.mfu:.1%}"
        if self.bar is None:
            text = ", ".join(f"{name} {value}" for name, value in numbers.items())
            print(f"training: step {record.step} of {self.steps}, {text}", file=sys.stderr, flush=True)
            return
        self.bar.set_postfix(numbers, refresh=False)
        self.bar.update(record.step - self.bar.n)

    def end(self, reason: str, info: RunInfo) -> None:
        if self.bar is not None:
            self.bar.close()
