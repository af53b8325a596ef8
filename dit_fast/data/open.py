# SPDX-License-Identifier: Apache-2.0
"""One name for all data: `open_source` looks what it is."""

import re
from pathlib import Path

from .dataset import DatasetSource, is_saved
from .folder import FolderSource
from .latents import LatentSource
from .manifest import is_cache
from .source import Source, WithClasses
from .tensors import digits

KINDS = ("auto", "folder", "dataset", "latents", "digits")


def open_source(
    data: str | Path, *, kind: str = "auto", image_size: int = 256, flip: bool = True, image_column: str = "image",
    label_column: str | None = "label", split: str = "train", num_classes: int | None = None, channels: int = 3,
) -> Source:  # fmt: skip
    """Open a folder of images, a dataset of `datasets`, a latent cache, or "digits".

    Args:
        data: a folder, the name of a dataset, or "digits".
        kind: "folder", "dataset", "latents" or "digits"; "auto" looks: see `kind_of`.
        image_size, channels: of pixels; latents and digits have their own.
        flip: mirror with probability 1/2, digits never.
        image_column, label_column, split: of a dataset.
        num_classes: None takes the data's; 0 leaves labels out; more than the data's makes room.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: what is there is something else; the message says what.
        ModuleNotFoundError: a library is missing; the message says which extra has it.
    """
    if kind not in KINDS:
        raise ValueError(f"`kind` must be one of {KINDS}, got {kind!r}")
    if not str(data):
        raise ValueError('`data` must be a folder, the name of a dataset or "digits", got nothing')
    kind = kind_of(str(data)) if kind == "auto" else kind
    source: Source
    if kind == "digits":
        source = digits()
    elif kind == "latents":
        source = LatentSource(data, flip)
    elif kind == "dataset":
        column = None if num_classes == 0 else label_column
        source = DatasetSource(data, image_size, flip, image_column, column, split, channels)
    else:
        source = FolderSource(data, image_size, flip, channels)
    return source if num_classes in (None, source.num_classes) else WithClasses(source, int(num_classes or 0))


def kind_of(data: str) -> str:
    """What `data` is: "digits"; a folder with the files of a latent cache, of a saved dataset, or with tables that
    `load_dataset` reads; any other folder; or, where there is nothing, a name as the hub has them.

    Raises:
        FileNotFoundError: nothing there, and not such a name.
        ValueError: a file.
    """
    path = Path(data)
    if data == "digits" and not path.exists():
        return "digits"
    if path.is_dir():
        if is_cache(path):
            return "latents"
        tables = any(file.suffix in (".parquet", ".arrow") for place in (path, path / "data") for file in listed(place))
        return "dataset" if is_saved(path) or tables else "folder"
    if path.exists():
        raise ValueError(f"`data` must be a folder or the name of a dataset, {data} is a file")
    if re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", data):
        return "dataset"
    raise FileNotFoundError(f"`data`: nothing at {data}")


def listed(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []
