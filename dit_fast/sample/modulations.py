# SPDX-License-Identifier: Apache-2.0
"""Shift, scale and gate of all blocks, for all steps and the labels asked for, computed before the loop of steps.

They depend on the timestep and the label only, and the weights that regress them are a third of a DiT. A step then
gathers one row a sample. N batch, M times, L labels (the null label among them), W width of a row.
"""

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
        budget: bytes the buffer may have; it has at least what one step needs.
        reach: how many times past its own a step looks at.
    """

    def __init__(self, model: DiT, times: Tensor, budget: int, reach: int) -> None:
        self.model, self.times, self.budget, self.reach = model, times, budget, reach
        self.has_labels = model.y_embedder is not None
        self.rows = model.condition_rows(times[:1], times.new_zeros(1, dtype=torch.int64) if self.has_labels else None)
        self.count = torch.ones(1, dtype=torch.int64, device=times.device)
        self.start = torch.zeros(1, dtype=torch.int64, device=times.device)
        self.labels: list[int] = []
        self.filled: tuple[int, int] | None = None

    def reserve(self, least: int, labels: int) -> None:
        """Make room for all times of so many labels, if the budget allows, and for one step of `least` labels, the most
        that a batch may ask for, in any case. `rows` may be another buffer afterwards."""
        affordable = self.budget // (self.rows.shape[1] * self.rows.element_size())
        wanted = max(least * (1 + self.reach), min(max(least, labels) * len(self.times), affordable))
        if wanted > len(self.rows):
            self.rows = self.rows.new_empty(wanted, self.rows.shape[1])  # a CPU backs what is filled
            self.forget()

    def holds_all(self, labels: int) -> bool:
        """Whether rows of all times fit for so many labels."""
        return labels * len(self.times) <= len(self.rows)

    def choose(self, labels: list[int], asked: list[int]) -> Tensor:
        """Set the labels to hold rows of; for each label that is asked for, its place among them, an int64 tensor."""
        if labels != self.labels:
            self.labels, self.ids = labels, torch.tensor(labels, device=self.times.device)
            self.count.fill_(len(labels))
            self.forget()
        place = {label: index for index, label in enumerate(labels)}
        return torch.tensor([place[label] for label in asked])

    def steps(self) -> int:
        """How many steps it has room for at once."""
        return len(self.rows) // len(self.labels) - self.reach

    def fill(self, first: int, last: int) -> None:
        """Compute the rows of steps first..last - 1, unless they are there."""
        if self.filled == (first, last):
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
        self.filled = first, last

    def rewind(self) -> None:
        """Back to the first time, whatever is there; rows that start there stay right."""
        self.start.zero_()
        if self.filled is not None and self.filled[0] > 0:
            self.forget()

    def forget(self) -> None:
        """The weights may have changed."""
        self.filled = None

    def at(self, time: Tensor, places: Tensor) -> Tensor:
        """The rows of one time, int64 (1,), and the labels at so many places: (N, W)."""
        return self.rows.index_select(0, (time - self.start) * self.count + places)
