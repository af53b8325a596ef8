# SPDX-License-Identifier: Apache-2.0
"""Many images as one. N images, H W C their pixels."""

import math

import torch
from torch import Tensor


def grid(images: Tensor, columns: int | None = None, gap: int = 1) -> Tensor:
    """(N, H, W, C) uint8 -> one picture (H', W', C) on the CPU, row by row, `gap` pixels of white between.

    `columns` None makes it as square as may be.
    """
    n, h, w, c = images.shape
    columns = columns or math.ceil(math.sqrt(n * h / w))
    rows = math.ceil(n / columns)
    picture = torch.full((rows * (h + gap) - gap, columns * (w + gap) - gap, c), 255, dtype=torch.uint8)
    for i, image in enumerate(images.cpu()):
        y, x = i // columns * (h + gap), i % columns * (w + gap)
        picture[y : y + h, x : x + w] = image
    return picture
