# SPDX-License-Identifier: Apache-2.0
"""Images held in memory, and the digits that come with scikit-learn."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from .source import mirrored, position


class TensorSource:
    """Images (M, C, H, W) float32, labels (M,) int64 or None; `class_names` may name more classes than there are.

    Raises:
        ValueError: another shape or dtype, no images, or a label without a class.
    """

    kind: Literal["pixels", "latents"] = "pixels"

    def __init__(
        self, images: Tensor, labels: Tensor | None = None, class_names: Sequence[str] | None = None, flip: bool = False
    ) -> None:
        if images.ndim != 4 or images.dtype != torch.float32 or not len(images):
            raise ValueError(f"`images` must be (M, C, H, W) float32, got {tuple(images.shape)} {images.dtype}")
        if labels is not None:
            check_labels(labels, len(images), class_names)
        self.images, self.labels, self.flip = images, labels, flip
        _, c, h, w = images.shape
        self.shape = (c, h, w)
        self.class_names = tuple(class_names) if class_names is not None and labels is not None else None
        self.num_classes = 0 if labels is None else len(self.class_names or ()) or int(labels.max()) + 1
        self.manifest: dict[str, Any] = {"kind": "tensors", "count": len(images), "shape": list(self.shape)}

    def __len__(self) -> int:
        return len(self.images)

    def example(self, index: int, generator: torch.Generator) -> tuple[Tensor, int]:
        image = self.images[position(index, len(self))]
        return image.flip(-1) if mirrored(self.flip, generator) else image, self.label(index)

    def label(self, index: int) -> int:
        return 0 if self.labels is None else int(self.labels[position(index, len(self))])

    def identity(self, index: int) -> str:
        return f"image {position(index, len(self))}"


def check_labels(labels: Tensor, count: int, class_names: Sequence[str] | None) -> None:
    if labels.shape != (count,) or labels.dtype != torch.int64:
        raise ValueError(f"`labels` must be ({count},) int64, got {tuple(labels.shape)} {labels.dtype}")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or (class_names is not None and high >= len(class_names)):
        last = "" if class_names is None else f" to {len(class_names) - 1}, as `class_names` has it"
        raise ValueError(f"`labels` must be from 0{last}, got {low} to {high}")


def digits() -> TensorSource:
    """The 1,797 handwritten 8 x 8 digits of scikit-learn, grey, in [-1, 1]. Not mirrored: a mirrored 3 is no 3."""
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as missing:
        raise ModuleNotFoundError("the digits need scikit-learn: pip install 'dit_fast[demo]'") from missing
    data = load_digits()
    images = torch.from_numpy(data.images).float()[:, None] / 8 - 1  # the values are 0 to 16
    return TensorSource(images, torch.from_numpy(data.target).long(), [str(name) for name in data.target_names])
