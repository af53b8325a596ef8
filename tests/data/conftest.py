# SPDX-License-Identifier: Apache-2.0
"""Images of two classes, a VAE of a few weights, and its latents; all made here."""

import numpy as np
import pytest
import torch
from PIL import Image

SIZE = 16


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """Ten images of noise: class `a` with six, `b` with four."""
    root = tmp_path_factory.mktemp("data") / "photos"
    rng = np.random.default_rng(0)
    for name, count in (("b", 4), ("a", 6)):
        (root / name).mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(0, 256, (SIZE + 3 * i, SIZE + 4, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    return root


@pytest.fixture(scope="session")
def vae_folder(tmp_path_factory):
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(8, 8), norm_num_groups=2, down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4, shift_factor=0.25,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("vae")
    vae.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def encoded(photos, vae_folder, tmp_path_factory):
    """A cache of the photos in three shards; tests copy it before they harm it."""
    from dit_fast.data import FolderSource, encode

    out = tmp_path_factory.mktemp("latents") / "cache"
    encode(FolderSource(photos, SIZE, flip=False), out, str(vae_folder), batch_size=3, shard_rows=4, processes=1)
    return out


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)
