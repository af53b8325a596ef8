# SPDX-License-Identifier: Apache-2.0
"""A folder of images: one folder in it for each class, or images alone."""

import os
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from .images import ENDINGS, MODES, read_image
from .names import Names
from .source import mirrored, position


class FolderSource:
    """Images below `path`: classes are its folders, sorted by name; images directly in it have no labels.

    A class may have folders of its own. Hidden files and files that do not end as images do are left out, and counted
    in `manifest["left_out"]`.

    Args:
        image_size: height and width of what the model sees.
        flip: mirror with probability 1/2.
        channels: 3, or 1 for grey.

    Raises:
        ValueError: no images, an empty class, or images beside class folders.
        FileNotFoundError: no such folder.
    """

    kind: Literal["pixels", "latents"] = "pixels"

    def __init__(self, path: str | Path, image_size: int = 256, flip: bool = True, channels: int = 3) -> None:
        self.root = Path(path)
        if not self.root.is_dir():
            raise FileNotFoundError(f"`data` must be a folder of images, {self.root} is none")
        check_pixels(image_size, channels)
        self.image_size, self.flip = image_size, flip
        files, labels, classes, left_out = scan(self.root)
        self.files, self.labels = Names(files), torch.tensor(labels, dtype=torch.int64)
        self.shape = (channels, image_size, image_size)
        self.num_classes, self.class_names = len(classes), tuple(classes) or None
        self.manifest: dict[str, Any] = {
            "kind": "folder", "count": len(files), "image_size": image_size, "left_out": left_out
        }  # fmt: skip

    def __len__(self) -> int:
        return len(self.files)

    def example(self, index: int, generator: torch.Generator) -> tuple[Tensor, int]:
        file = self.root / self.files[position(index, len(self))]
        image = read_image(file, str(file), self.image_size, self.shape[0])
        return image.flip(-1) if mirrored(self.flip, generator) else image, self.label(index)

    def label(self, index: int) -> int:
        return int(self.labels[position(index, len(self))])

    def identity(self, index: int) -> str:
        """The path within the folder."""
        return self.files[position(index, len(self))]


def check_pixels(image_size: int, channels: int) -> None:
    if image_size < 1:
        raise ValueError(f"`image_size` must be positive, got {image_size}")
    if channels not in MODES:
        raise ValueError(f"`channels` must be 1 or 3, got {channels}")


def scan(root: Path) -> tuple[list[str], list[int], list[str], int]:
    """Paths within `root`, their labels, class names, and how many files were left out."""
    entries = sorted((e for e in os.scandir(root) if not e.name.startswith(".")), key=lambda e: e.name)
    classes = [entry.name for entry in entries if entry.is_dir()]
    loose = [entry.name for entry in entries if not entry.is_dir()]
    images = [name for name in loose if is_image(name)]
    left_out = len(loose) - len(images)
    if classes and images:
        raise ValueError(
            f"`data` must be a folder of class folders or of images, {root} has both: {len(classes)} folders"
            f" ({classes[0]}, ...) and {len(images)} images ({images[0]}, ...)"
        )
    files, labels = images, [0] * len(images)
    for label, name in enumerate(classes):
        held, others = walk(root, name)
        if not held:
            raise ValueError(f"{root / name} is a class without images: endings known are {sorted(ENDINGS)}")
        files += held
        labels += [label] * len(held)
        left_out += others
    if not files:
        raise ValueError(f"`data` must be a folder of class folders or of images, {root} has {left_out} other files")
    return files, labels, classes, left_out


def walk(root: Path, name: str) -> tuple[list[str], int]:
    """Images below a class folder in order of their paths, and the number of other files."""
    held, others = [], 0
    for folder, inner, files in os.walk(root / name, followlinks=True):
        inner[:] = [other for other in inner if not other.startswith(".")]
        for file in files:
            if is_image(file):
                held.append(os.path.relpath(os.path.join(folder, file), root).replace(os.sep, "/"))
            else:
                others += 1
    return sorted(held), others


def is_image(name: str) -> bool:
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in ENDINGS
