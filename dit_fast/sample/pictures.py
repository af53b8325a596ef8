# SPDX-License-Identifier: Apache-2.0
"""Samples as pictures. N batch, C channels, H W image."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from dit_fast.pictures import grid

MODES = {1: "L", 3: "RGB"}


def to_uint8(images: Tensor) -> Tensor:
    """(N, C, H, W) in [-1, 1] -> (N, H, W, C) in 0..255, rounded."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1)


def save_images(images: Tensor, folder: str | Path, names: Sequence[str] | None = None) -> list[Path]:
    """Write each of images (N, H, W, C) uint8 to a PNG in `folder`: 000000.png, 000001.png ..., or `names`."""
    pixels, mode = _pixels("save_images", images)
    names = [f"{k:06d}" for k in range(len(pixels))] if names is None else names
    if len(names) != len(pixels):
        raise ValueError(f"save_images: `names` must hold one name an image, {len(pixels)}, got {len(names)}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{name}.png" for name in names]
    for file, picture in zip(files, pixels, strict=True):
        _save(picture, mode, file)
    return files


def save_grid(images: Tensor, path: str | Path, columns: int | None = None) -> None:
    """Write images (N, H, W, C) uint8 as one PNG, row by row; empty places are white.

    columns: images in a row; as square as can be where None.
    """
    pixels, mode = _pixels("save_grid", images)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    _save(grid(pixels, columns, gap=0), mode, Path(path))


def _pixels(function: str, images: Tensor) -> tuple[Tensor, str]:
    if images.dim() != 4 or images.dtype != torch.uint8 or images.shape[-1] not in MODES or not len(images):
        raise ValueError(
            f"{function}: `images` must be uint8 (N, H, W, C) with 1 or 3 channels (see `to_uint8`), got"
            f" {images.dtype} {tuple(images.shape)}"
        )
    return images.cpu(), MODES[images.shape[-1]]


def _save(picture: Tensor, mode: str, file: Path) -> None:
    from PIL import Image

    data = picture.contiguous().numpy().tobytes()
    Image.frombytes(mode, (picture.shape[1], picture.shape[0]), data).save(file)
