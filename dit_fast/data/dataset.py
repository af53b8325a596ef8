# SPDX-License-Identifier: Apache-2.0
"""A dataset of the library Hugging Face `datasets`: one that it saved, a folder it can read, or a name on the hub."""

import io
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from .folder import check_pixels
from .images import read_image
from .source import mirrored, position


class DatasetSource:
    """Images and labels of two columns.

    Args:
        data: a folder written by `save_to_disk`, a folder that `load_dataset` reads, or a name.
        image_column: images, encoded files or paths.
        label_column: ClassLabel, integers from 0, or strings, whose sorted set are the classes. None: no labels.
        split: as `load_dataset` takes it; of a saved dataset, the name of one of its splits.
        image_size, flip, channels: as of FolderSource.

    Raises:
        ValueError: no such split or column, another type, or a row without a label; the message says what is there.
        FileNotFoundError: no such folder and no such name.
        ModuleNotFoundError: `datasets` is not installed.
    """

    kind: Literal["pixels", "latents"] = "pixels"

    def __init__(
        self, data: str | Path, image_size: int = 256, flip: bool = True, image_column: str = "image",
        label_column: str | None = "label", split: str = "train", channels: int = 3,
    ) -> None:  # fmt: skip
        check_pixels(image_size, channels)
        self.name, self.image_size, self.flip = f"{data}[{split}]", image_size, flip
        rows = load(str(data), split)
        if not len(rows):
            raise ValueError(f"{self.name} has no rows")
        for argument, column in (("image_column", image_column), ("label_column", label_column)):
            if column is not None and column not in rows.column_names:
                raise ValueError(f"`{argument}` must be a column of {self.name}, {rows.column_names}, got {column!r}")
        self.images = encoded_images(rows.select_columns([image_column]), image_column, self.name)
        self.image_column = image_column
        self.labels = torch.zeros(len(rows), dtype=torch.int64)
        self.num_classes, self.class_names = 0, None
        if label_column is not None:
            self.labels, self.num_classes, self.class_names = read_labels(rows, label_column, self.name)
        self.shape = (channels, image_size, image_size)
        self.manifest: dict[str, Any] = {"kind": "dataset", "count": len(rows), "image_size": image_size}

    def __len__(self) -> int:
        return len(self.labels)

    def example(self, index: int, generator: torch.Generator) -> tuple[Tensor, int]:
        held = self.images[position(index, len(self))][self.image_column]
        if held is None or (held["bytes"] is None and held["path"] is None):
            raise ValueError(f"{self.name} row {index} has no image")
        file = io.BytesIO(held["bytes"]) if held["bytes"] is not None else Path(held["path"])
        name = f"{self.name} row {index}" + (f" ({held['path']})" if held["path"] else "")
        image = read_image(file, name, self.image_size, self.shape[0])
        return image.flip(-1) if mirrored(self.flip, generator) else image, self.label(index)

    def label(self, index: int) -> int:
        return int(self.labels[position(index, len(self))])

    def identity(self, index: int) -> str:
        """The row."""
        return f"row {position(index, len(self))}"


def is_saved(folder: Path) -> bool:
    """Written by `save_to_disk`, of a dataset or of several splits."""
    return (folder / "dataset_dict.json").is_file() or all(
        (folder / name).is_file() for name in ("state.json", "dataset_info.json")
    )


def library(asked: str) -> Any:
    try:
        import datasets  # type: ignore[import-untyped]
    except ModuleNotFoundError as missing:
        raise ModuleNotFoundError(f"{asked} needs the library datasets: pip install 'dit_fast[train]'") from missing
    return datasets


def load(data: str, split: str) -> Any:
    """The `datasets.Dataset` of one split."""
    datasets = library(data)
    if is_saved(Path(data)):
        saved = datasets.load_from_disk(data)
        if isinstance(saved, datasets.Dataset):
            if saved.split is not None and str(saved.split) != split:
                raise ValueError(f"`split` must be that of {data}, {str(saved.split)!r}, got {split!r}")
            return saved
        if split not in saved:
            raise ValueError(f"`split` must be one of {data}'s {sorted(saved)}, got {split!r}")
        return saved[split]
    try:
        return datasets.load_dataset(data, split=split)
    except (FileNotFoundError, ConnectionError, ValueError) as error:
        what = f"`data`: no dataset can be loaded from the {'folder' if Path(data).is_dir() else 'name'} {data!r}"
        raise type_of(error)(f"{what}, split {split!r}: {error}") from error


def type_of(error: Exception) -> type[Exception]:
    """The library's own errors have classes of their own; these two are what a caller expects."""
    return ValueError if isinstance(error, ValueError) else FileNotFoundError


def encoded_images(rows: Any, column: str, name: str) -> Any:
    """The rows with images as {"bytes", "path"}, not yet decoded: read_image does it, for every source alike."""
    datasets = library(name)
    kind = rows.features[column]
    plain = isinstance(kind, datasets.Value) and kind.dtype in ("string", "large_string", "binary", "large_binary")
    if not (plain or isinstance(kind, datasets.Image)):
        raise ValueError(f"`image_column` must be images, files' bytes or paths; {column!r} of {name} is {kind}")
    return rows.cast_column(column, datasets.Image(decode=False))


def read_labels(rows: Any, column: str, name: str) -> tuple[Tensor, int, tuple[str, ...] | None]:
    """Labels (M,), how many classes, and their names."""
    datasets = library(name)
    kind = rows.features[column]
    known = isinstance(kind, datasets.ClassLabel)
    if not known and not (isinstance(kind, datasets.Value) and kind.dtype.lstrip("u").startswith(("int", "string"))):
        raise ValueError(f"`label_column` must be classes, integers or strings; {column!r} of {name} is {kind}")
    values = list(rows.select_columns([column])[:][column])
    if None in values:
        raise ValueError(f"{name} row {values.index(None)} has no {column!r}")
    if not known and kind.dtype == "string":
        names = sorted(set(values))
        ids = {value: label for label, value in enumerate(names)}
        return torch.tensor([ids[value] for value in values]), len(names), tuple(names)
    labels = torch.from_numpy(np.asarray(values, dtype=np.int64))
    if int(labels.min()) < 0:
        raise ValueError(f"{name} row {int(labels.argmin())} has the {column!r} {int(labels.min())}, which is no class")
    if known:
        return labels, kind.num_classes, tuple(kind.names)
    return labels, int(labels.max()) + 1, None
