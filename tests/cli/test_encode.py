# SPDX-License-Identifier: Apache-2.0
"""`dit-fast encode` as a person types it, alone and under torchrun."""

import subprocess
import sys

import pytest

from dit_fast.cli import main
from tests.data.conftest import SIZE, encoded, photos, vae_folder  # noqa: F401
from tests.data.test_encode import content

FLAGS = ["--image-size", str(SIZE), "--batch-size", "3", "--shard-rows", "4"]


@pytest.fixture
def command(photos, vae_folder, tmp_path):  # noqa: F811
    return ["encode", str(photos), str(tmp_path / "cache"), "--vae", str(vae_folder), *FLAGS]


def test_encode_and_verify(command, encoded, tmp_path, capsys):  # noqa: F811
    assert main([*command, "--processes", "1", "--verify"]) == 0
    captured = capsys.readouterr()
    assert "10 images of 2 classes, latents (4, 8, 8), 3 shards" in captured.out and "checksums right" in captured.out
    assert "10/10" in captured.err
    assert content(tmp_path / "cache") == content(encoded)
    assert main([*command, "--processes", "1"]) == 0  # nothing is left to do
    assert "10 images" in capsys.readouterr().out
    assert main([*command, "--no-labels"]) == 2
    assert "`num_classes` is 2 there, 0 now" in capsys.readouterr().err
    assert main(["encode", str(tmp_path / "cache"), "--verify"]) == 0
    shard = tmp_path / "cache" / "shard-00000.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    assert main(["encode", str(tmp_path / "cache"), "--verify"]) == 2
    assert "1 of 3 shards differ from their checksum" in capsys.readouterr().err


def test_encode_says_what_is_missing(command, photos, tmp_path, capsys):  # noqa: F811
    for arguments, told in (
        (["encode", str(photos)], "OUT, the cache's folder, is missing"),
        (command[:3], "`--vae` is missing"),
        ([*command[:2], str(photos / "cache"), *command[3:]], "OUT must be outside of the data"),
        (["encode", str(tmp_path / "none" / "at" / "all"), *command[2:]], "nothing at"),
        (["encode", str(photos), "--verify"], "no latent cache at"),
    ):
        assert main(arguments) == 2
        assert told in capsys.readouterr().err


def test_ranks_of_torchrun_share_the_work(command, encoded, tmp_path):  # noqa: F811
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*torchrun, "-m", "dit_fast", *command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert content(tmp_path / "cache") == content(encoded)
    assert done.stdout.count("10 images of 2 classes") == 1
