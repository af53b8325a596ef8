# SPDX-License-Identifier: Apache-2.0
"""Sampling: `Sampler` draws, `decode` makes images of latents, `save_grid` and `save_images` write them."""

from .decoding import decode, load_vae
from .pictures import save_grid, save_images, to_uint8
from .sampler import Sampler, sample

__all__ = ["Sampler", "decode", "load_vae", "sample", "save_grid", "save_images", "to_uint8"]
