# SPDX-License-Identifier: Apache-2.0
"""Noise of one image at a time: image k's is a function of (seed, k), whatever batch or process it is drawn in.

N batch, S steps, C channels, H W image.
"""

import hashlib
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


def stream_seed(seed: int, image: int) -> int:
    """What the generator of an image starts from: 64 bits.

    A CPU's generator takes the lower 32 of them. So they count the images, from a start that depends on the seed: no
    two of the first 2**32 images share a stream, as some would if each were hashed.
    """
    start = int.from_bytes(hashlib.sha256(str(seed).encode()).digest()[:8], "big")
    return (start + image) % 2**64


def streams(seed: int, images: Iterable[int], device: torch.device) -> list[torch.Generator]:
    """A generator for each image."""
    return [torch.Generator(device).manual_seed(stream_seed(seed, image)) for image in images]


def draw(generators: Sequence[torch.Generator], out: Tensor) -> None:
    """Fill out (N, C, H, W), float32, with N(0, 1), each image from its own generator.

    One step's at a time: what a generator gives depends on how much it is asked for at once.
    """
    for row, generator in zip(out, generators, strict=True):
        row.normal_(generator=generator)
