# SPDX-License-Identifier: Apache-2.0
"""From an image file to what the model sees: the preprocessing that DiT (section 4) has from ADM (arXiv 2105.05233)."""

from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

ENDINGS = frozenset(
    (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
)
"""Files that end otherwise are no images to a folder of images."""

MODES = {1: "L", 3: "RGB"}


def read_image(file: Path | IO[bytes], name: str, size: int, channels: int = 3) -> Tensor:
    """(channels, size, size) float32 in [-1, 1], upright, cropped in the middle.

    Raises:
        ValueError: the file is no whole image; the message begins with `name`.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(file) as opened:
            picture = center_crop(flatten(ImageOps.exif_transpose(opened), MODES[channels]), size)
    except MemoryError:
        raise
    except Exception as error:  # whatever a broken file leads to
        raise ValueError(f"{name} cannot be read as an image: {type(error).__name__}: {error}") from error
    values = torch.from_numpy(np.array(picture)).view(size, size, channels)
    return values.permute(2, 0, 1).contiguous() / 127.5 - 1


def flatten(picture: "Picture", mode: str) -> "Picture":
    """In `mode`, "L" or "RGB", as a viewer shows it on a white page: what is transparent has no colour of its own."""
    from PIL import Image

    if picture.mode == "F":
        raise ValueError("its values are floating-point numbers, whose black and white are not known")
    if picture.mode.startswith("I"):  # 16 bits of grey, which Pillow would clip at 255
        values = np.asarray(picture).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(f"its values must be from 0 to 65535, got {values.min()} to {values.max()}")
        picture = Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
    if picture.has_transparency_data:
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture.convert("RGBA"))
    return picture.convert(mode)


def center_crop(picture: "Picture", size: int) -> "Picture":
    """The middle square, `size` pixels wide: halved by averaging boxes while twice as large, then bicubic."""
    from PIL import Image

    while min(picture.size) >= 2 * size:
        picture = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BOX)
    scale = size / min(picture.size)
    picture = picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.BICUBIC)
    left, top = (picture.width - size) // 2, (picture.height - size) // 2
    return picture.crop((left, top, left + size, top + size))
