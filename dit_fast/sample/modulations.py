# SPDX-License-Identifier: Apache-2.0
"""Shift, scale and gate of all blocks, for all steps and the labels asked for, computed before the loop of steps.

They depend on the timestep and the label only, and the weights that regress them are a third of a DiT. A step then
gathers one row a sample. N batch, M times, L labels (the null label among them), W width of a row.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from dit_fast.models import DiT

AT_ONCE = 256
"""Rows of one matrix product, about: enough to read the weights seldom, few enough to need little memory."""


class ModulationTable:
    """Rows of `DiT.condition_rows` for a stretch of times, in a buffer that stays where it is.

    Args:
        model: the model; what its weights were when `fill` was called is what the rows hold.
        times: (M,) on the model's device.
        batch: N.
        guided: whether steps ask for the null label too, in the second half of 2N rows.
        labels: the most labels that a batch can ask for, the null label among them.
        budget: bytes the buffer may have; it has at least what one step needs.
        reach: how many times past its own a step looks at.
    """

    def __init__(
        self, model: DiT, times: Tensor, batch: int, guided: bool, labels: int, budget: int, reach: int
    ) -> None:
        self.model, self.times, self.reach = model, times, reach
        device = times.device
        self.has_labels = model.y_embedder is not None
        row = model.condition_rows(times[:1], times.new_zeros(1, dtype=torch.int64) if self.has_labels else None)
        least, most = labels * (1 + reach), labels * len(times)
        capacity = max(least, min(most, budget // (row.shape[1] * row.element_size())))
        self.rows = row.new_zeros(capacity, row.shape[1])
        self.batch, self.guided = batch, guided
        self.slots = torch.zeros((2 if guided else 1) * batch, dtype=torch.int64, device=device)
        self.count = torch.ones(1, dtype=torch.int64, device=device)
        self.start = torch.zeros(1, dtype=torch.int64, device=device)
        self.labels: list[int] = []
        self.filled: tuple[list[int], int, int] | None = None

    def holds_all(self, labels: Sequence[int]) -> bool:
        """Whether rows of all times fit for so many labels."""
        return len(labels) * len(self.times) <= len(self.rows)

    def choose(self, labels: list[int], asked: list[int]) -> None:
        """The labels to hold rows of, and the label of each of the batch's rows, 2N of them where it is guided."""
        self.labels = labels
        self.ids = torch.tensor(labels, device=self.times.device)
        slot = {label: index for index, label in enumerate(labels)}
        self.slots.copy_(torch.tensor([slot[label] for label in asked]))
        self.count.fill_(len(labels))

    def steps(self) -> int:
        """How many steps it has room for at once."""
        return len(self.rows) // len(self.labels) - self.reach

    def fill(self, first: int, last: int) -> None:
        """Compute the rows of steps first..last - 1, unless they are there."""
        if self.filled == (self.labels, first, last):
            return
        stop, count = min(last + self.reach, len(self.times)), len(self.labels)
        stride = max(1, AT_ONCE // count)
        for at in range(first, stop, stride):
            t = self.times[at : min(at + stride, stop)]
            y = self.ids.repeat(len(t)) if self.has_labels else None
            rows = self.model.condition_rows(t[:, None].expand(-1, count).reshape(-1), y)
            offset = (at - first) * count
            self.rows[offset : offset + len(rows)] = rows
        self.start.fill_(first)
        self.filled = self.labels, first, last

    def forget(self) -> None:
        """The weights may have changed."""
        self.filled = None

    def at(self, time: Tensor, rows: int) -> Tensor:
        """(rows, W): those of the first `rows` samples at time int64 (1,)."""
        return self.rows.index_select(0, (time - self.start) * self.count + self.slots[:rows])
