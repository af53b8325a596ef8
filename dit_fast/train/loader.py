# SPDX-License-Identifier: Apache-2.0
"""Which images a step trains on, and their way to the device. C channels, H W image, B images a step."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dit_fast.data import Source

from .objective import stream


class Order:
    """Every epoch is a permutation of the images, drawn from (seed, epoch); its last, incomplete batch is left out.

    Raises:
        ValueError: fewer images than a batch has.
    """

    def __init__(self, size: int, batch: int, seed: int) -> None:
        if batch > size:
            raise ValueError(f"train: `batch_size` must be at most the number of images, {size}, got {batch}")
        self.size, self.batch, self.seed = size, batch, seed
        self.batches = size // batch
        self._epoch, self._permutation = -1, torch.empty(0, dtype=torch.int64)

    def epoch(self, step: int) -> int:
        return step // self.batches

    def __call__(self, step: int) -> list[int]:
        """The images of a step, (B,) indices."""
        if self._epoch != self.epoch(step):
            self._epoch = self.epoch(step)
            generator = torch.Generator().manual_seed(stream(self.seed, "order", self._epoch))
            self._permutation = torch.randperm(self.size, generator=generator)
        first = step % self.batches * self.batch
        return self._permutation[first : first + self.batch].tolist()


class _Examples(Dataset[tuple[Tensor, int]]):
    """Image (epoch, index), its chance drawn from (seed, epoch, index): the same whichever process loads it."""

    def __init__(self, source: Source, seed: int) -> None:
        self.source, self.seed = source, seed

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int]:
        generator = torch.Generator().manual_seed(stream(self.seed, "example", *key))
        return self.source.example(key[1], generator)


class _Keys:
    """For a DataLoader: the (epoch, index) of this rank's rows, step after step."""

    def __init__(self, order: Order, rows: slice, start: int, stop: int) -> None:
        self.order, self.rows, self.start, self.stop = order, rows, start, stop

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step in range(self.start, self.stop):
            epoch = self.order.epoch(step)
            yield [(epoch, index) for index in self.order(step)[self.rows]]


def batches(
    source: Source, order: Order, rows: slice, steps: range, workers: int, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """This rank's rows of each step: x (n, C, H, W) float32, y (n,) int64, on `device`."""
    keys: Any = _Keys(order, rows, steps.start, steps.stop)
    loader = DataLoader(
        _Examples(source, order.seed), batch_sampler=keys, num_workers=workers, collate_fn=_collate,
        pin_memory=device.type == "cuda", generator=torch.Generator(),
    )  # fmt: skip
    for x, y in loader:
        yield x.to(device, non_blocking=True), y.to(device, non_blocking=True)


def _collate(examples: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
    return torch.stack([x for x, _ in examples]), torch.tensor([y for _, y in examples])
