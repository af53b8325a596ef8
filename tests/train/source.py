# SPDX-License-Identifier: Apache-2.0
"""Data for tests of training: images of two classes, dark and bright, with noise that is drawn at each look."""

import torch
from torch import Tensor


class Tiles:
    """`count` images (1, 4, 4); image `nan`, if any, is not a number."""

    kind = "pixels"
    class_names = ("dark", "bright")
    manifest = {"kind": "tiles"}  # noqa: RUF012
    shape = (1, 4, 4)
    num_classes = 2

    def __init__(self, count: int = 32, nan: int | None = None) -> None:
        self.count, self.nan = count, nan

    def __len__(self) -> int:
        return self.count

    def example(self, index: int, generator: torch.Generator) -> tuple[Tensor, int]:
        level = float("nan") if index == self.nan else 2.0 * (index % 2) - 1
        return level + 0.05 * torch.randn(self.shape, generator=generator), index % 2

    def identity(self, index: int) -> str:
        return f"tile {index}"
