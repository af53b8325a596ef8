# SPDX-License-Identifier: Apache-2.0
"""What training reads from: the protocol of a source, and what all sources share."""

from typing import Any, Literal, Protocol

import torch
from torch import Tensor


class Source(Protocol):
    """Examples by index, without state that changes: any process may ask for any example in any order.

    Attributes:
        shape: (C, H, W) of an example.
        num_classes: 0 where there are no labels.
        class_names: of each class, or None where they have only numbers.
        kind: "pixels", in [-1, 1]; or "latents", times the VAE's scale.
        manifest: what a run should remember of its data, as JSON can hold it; of latents, the VAE and its scale.
    """

    shape: tuple[int, int, int]
    num_classes: int
    class_names: tuple[str, ...] | None
    kind: Literal["pixels", "latents"]
    manifest: dict[str, Any]

    def __len__(self) -> int: ...

    def example(self, index: int, generator: torch.Generator) -> tuple[Tensor, int]:
        """(C, H, W) float32 and its label, 0 where there are none. All chance (flip, posterior) is the generator's.

        Raises:
            ValueError: the example cannot be read; the message has its `identity`.
        """

    def label(self, index: int) -> int:
        """The label alone, without reading the image."""

    def identity(self, index: int) -> str:
        """Where the example comes from, in words for a message: a path, a row."""


def position(index: int, count: int) -> int:
    """`index`, if it is one; Python's negative ones are not, for they hide mistakes of a data order."""
    if not 0 <= index < count:
        raise IndexError(f"`index` must be from 0 to {count - 1}, got {index}")
    return index


def mirrored(flip: bool, generator: torch.Generator) -> bool:
    """One throw of a coin where `flip` asks for it."""
    return flip and bool(torch.rand((), generator=generator) < 0.5)


class WithClasses:
    """A source with another number of classes: more than it names, for ids of a larger set, or 0, without labels."""

    def __init__(self, source: Source, num_classes: int) -> None:
        if num_classes < 0 or 0 < num_classes < source.num_classes:
            raise ValueError(f"`num_classes` must be 0 or at least the data's {source.num_classes}, got {num_classes}")
        if num_classes and not source.num_classes:
            raise ValueError(f"`num_classes` must be 0, for the data has no labels, got {num_classes}")
        self.source, self.num_classes = source, num_classes
        self.shape, self.kind, self.manifest = source.shape, source.kind, source.manifest
        self.class_names = source.class_names if num_classes == source.num_classes else None

    def __len__(self) -> int:
        return len(self.source)

    def example(self, index: int, generator: torch.Generator) -> tuple[Tensor, int]:
        image, label = self.source.example(index, generator)
        return image, label if self.num_classes else 0

    def label(self, index: int) -> int:
        return self.source.label(index) if self.num_classes else 0

    def identity(self, index: int) -> str:
        return self.source.identity(index)
