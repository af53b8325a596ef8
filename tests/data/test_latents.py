# SPDX-License-Identifier: Apache-2.0
"""What a cache gives to training: draws from the VAE's own posterior, of the image or its mirror image."""

import json
import shutil
import subprocess
import sys

import pytest
import torch

from dit_fast.data import FolderSource, LatentSource, load_vae, open_source
from dit_fast.data.manifest import MANIFEST, compare_checksums, read_cache

from .conftest import SIZE


@pytest.fixture
def cache(encoded, tmp_path):
    return shutil.copytree(encoded, tmp_path / "cache")


def edit(cache, **entries):
    content = json.loads((cache / MANIFEST).read_text())
    (cache / MANIFEST).write_text(json.dumps({**content, **entries}))


@torch.no_grad()
def test_moments_are_diffusers_own(photos, vae_folder, encoded):
    """The same VAE on the same image by itself; one more image in a batch may change the last bit of a sum."""
    vae, source, latents = load_vae(str(vae_folder)), FolderSource(photos, SIZE, flip=False), LatentSource(encoded)
    for index in (0, 4, 9):
        image = source.example(index, torch.Generator())[0]
        for mirror in (False, True):
            wanted = vae.encode((image.flip(-1) if mirror else image)[None]).latent_dist
            mean, std = latents.posterior(index, mirror)
            torch.testing.assert_close(mean, wanted.mean[0])
            torch.testing.assert_close(std, wanted.std[0])
        mean, mirrored = latents.posterior(index)[0], latents.posterior(index, True)[0]
        assert (mean.flip(-1) - mirrored).abs().max() > 1e-3  # why both are stored


def test_an_example_is_a_scaled_draw(encoded):
    source = LatentSource(encoded, flip=False)
    mean, std = source.posterior(5)
    latent, label = source.example(5, torch.Generator().manual_seed(3))
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(3))
    assert torch.equal(latent, (mean + std * noise - 0.25) * 0.18215) and label == 0
    assert not torch.equal(latent, source.example(5, torch.Generator().manual_seed(4))[0])
    assert source.example(6, torch.Generator())[1] == 1
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack([source.example(5, generator)[0] for _ in range(400)]) / 0.18215 + 0.25
    sigmas = (drawn.mean(0) - mean) / std * 400**0.5  # standard normal if mean and std are right
    assert sigmas.abs().max() < 5 and 0.8 < sigmas.std() < 1.2


def test_the_flip_takes_the_mirror_images_posterior(encoded):
    source = LatentSource(encoded)
    seen = set()
    for seed in range(12):
        generator = torch.Generator().manual_seed(seed)
        mirror = bool(torch.rand((), generator=generator) < 0.5)
        mean, std = source.posterior(2, mirror)
        wanted = (mean + std * torch.randn(mean.shape, generator=generator) - 0.25) * 0.18215
        assert torch.equal(source.example(2, torch.Generator().manual_seed(seed))[0], wanted)
        seen.add(mirror)
    assert seen == {False, True}


def test_it_says_what_it_is(encoded, photos, vae_folder):
    source = open_source(encoded)
    assert (len(source), source.shape, source.kind) == (10, (4, SIZE // 2, SIZE // 2), "latents")
    assert (source.num_classes, source.class_names) == (2, ("a", "b"))
    assert [source.label(i) for i in range(10)] == [0] * 6 + [1] * 4
    assert source.identity(9).startswith("b/3.png (") and source.identity(9).endswith("shard-00002.safetensors row 1)")
    assert source.manifest["scaling_factor"] == 0.18215 and source.manifest["vae"] == str(vae_folder)
    json.dumps(source.manifest)
    for index in (-1, 10):
        with pytest.raises(IndexError, match=f"from 0 to 9, got {index}"):
            source.example(index, torch.Generator())


def test_no_vae_is_loaded(encoded):
    program = (
        "import sys, torch; from dit_fast.data import open_source\n"
        f"open_source({str(encoded)!r}).example(0, torch.Generator())\n"
        "assert not {'diffusers', 'transformers', 'datasets', 'sklearn', 'PIL'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_cut_shard(cache):
    file = cache / "shard-00001.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"shard-00001.safetensors must have \d+ bytes, it has \d+: it was cut"):
        open_source(cache)
    file.unlink()
    with pytest.raises(ValueError, match="shard-00001.safetensors is missing"):
        open_source(cache)


def test_a_changed_shard(cache):
    LatentSource(cache, verify=True)
    file = cache / "shard-00002.safetensors"
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    LatentSource(cache)  # of the right size
    for check in (lambda: LatentSource(cache, verify=True), lambda: compare_checksums(cache, read_cache(cache))):
        with pytest.raises(
            ValueError, match=r"1 of 3 shards differ from their checksum: \['shard-00002.safetensors'\]"
        ):
            check()
    file.write_bytes(b"\xff" * len(content))
    with pytest.raises(ValueError, match="shard-00002.safetensors is no whole shard of latents"):
        LatentSource(cache).example(9, torch.Generator())


@pytest.mark.parametrize(
    "entries,told",
    [
        ({"format": "other"}, "must be of the format 'dit_fast latents', got 'other'"),
        ({"version": 2}, "must be of version 1, got 2"),
        ({"extra": 1}, r"must have the entries of a latent cache, \['extra'\] differ"),
        ({"count": 14}, "its shards do not hold 14 rows, 4 each"),
        ({"shards": []}, "names no shards"),
        ({"shards": [1]}, "is no manifest of a latent cache"),
        ({"latent_shape": None}, "is no manifest of a latent cache"),
    ],
)
def test_a_foreign_manifest(cache, entries, told):
    edit(cache, **entries)
    with pytest.raises(ValueError, match=told):
        open_source(cache)


def test_a_manifest_that_is_no_json(cache):
    whole = (cache / MANIFEST).read_text()
    for content, told in ((whole[:50], "is not JSON"), ("[]", "got 'list'")):
        (cache / MANIFEST).write_text(content)
        with pytest.raises(ValueError, match=told):
            open_source(cache)
