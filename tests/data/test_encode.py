# SPDX-License-Identifier: Apache-2.0
"""Making a cache: the same bytes whatever happens on the way, and a clear word where it cannot go on."""

import errno
import fcntl
import multiprocessing as mp
import os
import shutil
import signal
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image

from dit_fast.data import FolderSource, LatentSource, TensorSource, encode, load_vae
from dit_fast.data.manifest import MANIFEST, PLAN

from .conftest import SIZE

OPTIONS = dict(batch_size=3, shard_rows=4, processes=1)
"""Of the fixture `encoded`."""


def source_of(photos):
    return FolderSource(photos, SIZE, flip=False)


def content(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def forked(function):
    """The exit code of `function` in a process like this one."""
    process = mp.get_context("fork").Process(target=function)
    process.start()
    process.join()
    return process.exitcode


def test_processes_and_readers_change_no_byte(photos, vae_folder, encoded, tmp_path, capsys):
    encode(source_of(photos), tmp_path / "two", str(vae_folder), **{**OPTIONS, "processes": 2}, progress=True)
    assert "10/10" in capsys.readouterr().err
    encode(source_of(photos), tmp_path / "readers", str(vae_folder), **OPTIONS, workers=2)
    assert content(tmp_path / "two") == content(tmp_path / "readers") == content(encoded)


def test_threads_of_the_caller_stay(photos, vae_folder, encoded, tmp_path):
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        encode(source_of(photos), tmp_path / "c", str(vae_folder), **OPTIONS)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert content(tmp_path / "c") == content(encoded)


def test_killed_at_every_write_and_resumed(vae_folder, tmp_path):
    """SIGKILL before and after each call that makes a write last, one run each; then the run that goes on."""
    torch.manual_seed(0)
    source = TensorSource(torch.rand(4, 3, 4, 4) * 2 - 1, torch.tensor([1, 0, 0, 2]))

    def run(out, kill_at=-1):
        torch.set_num_threads(1)  # a forked process has none of its parent's
        calls = 0

        def deadly(call):
            def wrapped(*arguments, **options):
                nonlocal calls
                for step in (lambda: None, lambda: call(*arguments, **options)):
                    step()
                    calls += 1
                    if calls == kill_at:
                        os.kill(os.getpid(), signal.SIGKILL)

            return wrapped

        for name in ("replace", "unlink"):
            setattr(os, name, deadly(getattr(os, name)))
        encode(source, out, str(vae_folder), batch_size=2, shard_rows=2, processes=1)

    assert forked(lambda: run(tmp_path / "whole")) == 0
    whole = content(tmp_path / "whole")
    for kill_at in range(1, 200):
        out = tmp_path / f"{kill_at}"
        if forked(partial(run, out, kill_at)) == 0:
            break
        left = content(out)
        assert "manifest.json" not in left or {name: left.get(name) for name in whole} == whole
        encode(source, out, str(vae_folder), batch_size=2, shard_rows=2, processes=1)
        assert content(out) == whole
    assert 20 < kill_at < 199


def test_what_is_whole_is_kept(photos, vae_folder, encoded, tmp_path, monkeypatch):
    out = tmp_path / "cache"
    write = Path.write_bytes

    def full(path, data):
        if path.name.startswith("shard-00002"):
            write(path, data[:100])
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="no space left for .*cache; whole shards are kept: make room and run the same"):
        encode(source_of(photos), out, str(vae_folder), **OPTIONS)
    monkeypatch.undo()
    shards = {f"shard-0000{i}.{kind}" for i in range(2) for kind in ("json", "safetensors")}
    assert {*content(out)} == {PLAN, *shards, "shard-00002.json"}
    with pytest.raises(ValueError, match="is a latent cache half made, 2 of 3 shards: run the same"):
        LatentSource(out)
    times = [(out / f"shard-0000{i}.safetensors").stat().st_mtime_ns for i in range(2)]
    encode(source_of(photos), out, str(vae_folder), **OPTIONS)
    assert [(out / f"shard-0000{i}.safetensors").stat().st_mtime_ns for i in range(2)] == times
    assert content(out) == content(encoded)
    assert {*content(out)} == {MANIFEST, *(f"shard-0000{i}.safetensors" for i in range(3))}


def test_broken_images_are_all_named_and_cost_their_shards_only(photos, vae_folder, encoded, tmp_path):
    root, out = shutil.copytree(photos, tmp_path / "photos"), tmp_path / "cache"
    for name in ("a/3.png", "b/2.png", "b/3.png"):  # the last batch of one shard, two in another
        (root / name).write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"3 images cannot be read: .*a/3.png .*b/2.png .*b/3.png .*whole images in"):
        encode(source_of(root), out, str(vae_folder), **OPTIONS)
    assert [path.name for path in out.glob("*.safetensors")] == ["shard-00001.safetensors"]
    shutil.copytree(photos, root, dirs_exist_ok=True)
    encode(source_of(root), out, str(vae_folder), **OPTIONS)
    assert content(out) == content(encoded)


def test_another_cache_is_refused_and_untouched(photos, vae_folder, encoded, tmp_path):
    out = shutil.copytree(encoded, tmp_path / "cache")
    for options, told in (
        ({"batch_size": 2}, "`batch_size` is 3 there, 2 now"),
        ({"shard_rows": 2, "flip": False}, "`shard_rows` is 4 there, 2 now, `flip` is True there, False now"),
        ({"dtype": "float16"}, "`dtype` is 'float32' there"),
        ({"compute_dtype": "bfloat16"}, "`compute_dtype` is 'float32' there"),
    ):
        with pytest.raises(ValueError, match=f"is a latent cache of something else: {told}"):
            encode(source_of(photos), out, str(vae_folder), **{**OPTIONS, **options})
    root = shutil.copytree(photos, tmp_path / "photos")
    (root / "a" / "5.png").rename(root / "b" / "5.png")
    with pytest.raises(ValueError, match="`source_sha256` is"):
        encode(source_of(root), out, str(vae_folder), **OPTIONS)
    other = load_vae(str(vae_folder))
    with torch.no_grad():
        other.decoder.conv_out.bias[0] += 1e-3
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="`vae_sha256` is"):
        encode(source_of(photos), out, str(tmp_path / "other"), **OPTIONS)
    moved = shutil.copytree(vae_folder, tmp_path / "pipeline" / "vae").parent  # the same VAE in another place
    encode(source_of(photos), out, str(moved), **OPTIONS)
    assert content(out) == content(encoded)


def test_folders_that_cannot_be_written(photos, vae_folder, tmp_path):
    (tmp_path / "holiday.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"must be a new folder or a latent cache, .* holds \['holiday.png'\]"):
        encode(source_of(photos), tmp_path, str(vae_folder), **OPTIONS)
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.png"]
    (tmp_path / "held").mkdir()
    with (tmp_path / "held" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="another process is encoding into .*held"):
            encode(source_of(photos), tmp_path / "held", str(vae_folder), **OPTIONS)


def test_without_mirror_images(photos, vae_folder, encoded, tmp_path):
    encode(source_of(photos), tmp_path / "c", str(vae_folder), **OPTIONS, flip=False)
    with pytest.raises(ValueError, match="`flip` must be False: .* without mirror images"):
        LatentSource(tmp_path / "c")
    plain, both = LatentSource(tmp_path / "c", flip=False), LatentSource(encoded, flip=False)
    assert torch.equal(plain.posterior(9)[0], both.posterior(9)[0])
    shard = "shard-00000.safetensors"
    assert (tmp_path / "c" / shard).stat().st_size < 0.6 * (encoded / shard).stat().st_size


def test_less_precision(photos, vae_folder, encoded, tmp_path):
    exact = LatentSource(encoded)
    for options, error in (({"dtype": "float16"}, 2**-11), ({"compute_dtype": "bfloat16"}, None)):
        out = tmp_path / str(error)
        encode(source_of(photos), out, str(vae_folder), **OPTIONS, **options)
        found, wanted = LatentSource(out).posterior(7), exact.posterior(7)
        for got, true in zip(found, wanted, strict=True):
            assert got.dtype == torch.float32 and not torch.equal(got, true)
            if error:
                assert ((got - true).abs() <= error * true.abs() + 2**-25).all()  # half a step of float16
            else:
                assert (got - true).norm() < 0.05 * true.norm()


def test_numbers_that_are_not_finite_are_named(photos, vae_folder, tmp_path):
    vae = load_vae(str(vae_folder))
    with torch.no_grad():
        vae.quant_conv.bias[:4] = 1e5  # finite in float32, not in float16
    vae.save_pretrained(tmp_path / "large")
    encode(source_of(photos), tmp_path / "c", str(tmp_path / "large"), **OPTIONS)
    with pytest.raises(ValueError, match=r"`mean` in float16, computed in float32, is not finite: \['a/0.png'"):
        encode(source_of(photos), tmp_path / "half", str(tmp_path / "large"), **OPTIONS, dtype="float16")


def test_arguments(photos, vae_folder, tmp_path):
    good = dict(source=source_of(photos), out=tmp_path / "c", vae=str(vae_folder), **OPTIONS)
    for wrong, told in (
        ({"batch_size": 0}, "`batch_size` must be at least 1, got 0"),
        ({"workers": -1}, "`workers` must be at least 0, got -1"),
        ({"dtype": "bfloat16"}, "`dtype` must be one of .*float16.*, got 'bfloat16'"),
        ({"device": "cuda"}, "PyTorch sees no GPU"),
        ({"source": FolderSource(photos, SIZE)}, "`source` must not flip"),
        ({"source": TensorSource(torch.zeros(1, 3, 8, 4))}, "must be of square images"),
        ({"source": TensorSource(torch.zeros(1, 3, 7, 7))}, "`image_size` must be a multiple of 2, .* got 7"),
        ({"source": TensorSource(torch.zeros(1, 1, 8, 8))}, "must have the VAE's 3 channels, got 1"),
        ({"vae": str(photos)}, "no AutoencoderKL can be loaded from .*photos"),
    ):
        with pytest.raises(ValueError, match=told):
            encode(**{**good, **wrong})
    assert not (tmp_path / "c").exists()


def test_every_kind_of_colour_in_one_folder(vae_folder, tmp_path):
    (tmp_path / "mixed").mkdir()
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA"):
        Image.new(mode, (9, 8)).save(tmp_path / "mixed" / f"{mode}.png")
    Image.new("CMYK", (9, 8)).save(tmp_path / "mixed" / "ink.jpg")
    source = FolderSource(tmp_path / "mixed", 8, flip=False)
    manifest = encode(source, tmp_path / "c", str(vae_folder), processes=1)
    assert (manifest.count, manifest.num_classes, len(manifest.shards)) == (7, 0, 1)
