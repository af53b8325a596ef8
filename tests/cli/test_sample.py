# SPDX-License-Identifier: Apache-2.0
"""`dit-fast sample` as a person types it."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from dit_fast.cli import main
from dit_fast.data import TensorSource
from dit_fast.integrations import checkpoints
from dit_fast.models import DiT, load_model, save_model
from dit_fast.parity import enliven
from dit_fast.sample import Sampler, decode, load_vae, to_uint8
from dit_fast.train import TrainConfig
from dit_fast.train.engine import Trainer


def small(**kwargs):
    torch.manual_seed(0)
    shape = dict(input_size=4, in_channels=1, hidden_size=64, depth=1, num_heads=1, num_classes=3)
    return enliven(DiT(**{**shape, **kwargs}))


def pixels(path):
    return np.asarray(Image.open(path))


@pytest.fixture
def checkpoint(tmp_path):
    save_model(small(), tmp_path / "m.safetensors")
    return tmp_path / "m.safetensors"


@pytest.mark.parametrize("channels,mode", [(1, "L"), (3, "RGB")])
def test_a_row_a_class(tmp_path, channels, mode):
    save_model(small(in_channels=channels), tmp_path / "m.safetensors")
    out = tmp_path / "out" / "s.png"
    command = ["sample", str(tmp_path / "m.safetensors"), "--out", str(out), "--steps", "4", "--classes", "2", "0"]
    assert main([*command, "--per-class", "5"]) == 0
    assert Image.open(out).size == (20, 8) and Image.open(out).mode == mode
    first = pixels(out)
    assert main([*command, "--per-class", "5"]) == 0
    assert np.array_equal(pixels(out), first)  # same seed
    assert main([*command, "--per-class", "5", "--seed", "1"]) == 0
    assert not np.array_equal(pixels(out), first)
    model = load_model(tmp_path / "m.safetensors")
    drawn = Sampler(model, steps=4, cfg_scale=4.0, clip_denoised=True)([2] * 5 + [0] * 5)
    assert np.array_equal(first[4:, :4].reshape(-1), to_uint8(drawn)[5].numpy().reshape(-1))


@pytest.mark.parametrize(
    "options",
    [
        ["--sampler", "ddim", "--steps", "ddim2", "--eta", "0.5", "--cfg-scale", "1"],
        ["--sampler", "heun", "--steps", "2", "--cfg-interval", "200", "700"],
        ["--sampler", "DPMSolverMultistepScheduler", "--steps", "2", "--cfg-channels", "all"],
        ["--steps", "2", "--no-modulation-cache", "--no-shared-patch-embedding", "--no-cuda-graph", "--size", "8", "4"],
        ["--steps", "2", "--dtype", "bfloat16", "--device", "cpu", "--batch-size", "2"],
    ],
    ids=lambda o: " ".join(o),
)
def test_ways_to_draw(checkpoint, tmp_path, options):
    folder = tmp_path / "images"
    command = ["sample", str(checkpoint), "--images-dir", str(folder), "--per-class", "2", "--classes", "1"]
    assert main([*command, *options]) == 0
    assert sorted(path.name for path in folder.iterdir()) == ["000000.png", "000001.png"]
    assert Image.open(folder / "000001.png").size == ((4, 8) if "--size" in options else (4, 4))
    assert not (tmp_path / "samples.png").exists()


@pytest.mark.parametrize("objective", ["ddpm", "flow"])
def test_a_runs_folder_is_its_newest_average_with_its_objective_and_names(tmp_path, capsys, objective):
    source = TensorSource(torch.rand(6, 1, 4, 4), torch.arange(6) % 3, ["cat", "dog", "emu"])
    config = TrainConfig(
        out=str(tmp_path / "run"), steps=2, batch_size=2, objective=objective, save_every=1, sample_every=0, workers=0,
        model="DiT", model_args=dict(hidden_size=64, depth=1, num_heads=1),
    )  # fmt: skip
    Trainer(config, source, watchers=[]).run()
    out = tmp_path / "s.png"
    command = ["sample", str(tmp_path / "run"), "--classes", "Emu", "1", "--per-class", "1", "--steps", "2"]
    assert main([*command, "--out", str(out)]) == 0
    assert "step-00000002 (step 2), a row for each of Emu, 1" in capsys.readouterr().out
    average = load_model(tmp_path / "run" / "checkpoints" / "step-00000002" / "ema.safetensors")
    ours = dict(method="euler") if objective == "flow" else dict(clip_denoised=True)
    drawn = to_uint8(Sampler(average, steps=2, cfg_scale=4.0, **ours)([2, 1]))
    assert np.array_equal(pixels(out).reshape(2, 4, 4), drawn[..., 0].numpy())
    (tmp_path / "run" / "checkpoints" / "step-00000002" / "manifest.json").unlink()
    assert main([*command, "--out", str(out)]) == 0
    assert "step-00000001 (step 1)" in capsys.readouterr().out
    (tmp_path / "run" / "checkpoints" / "step-00000001" / "manifest.json").unlink()
    assert main([*command, "--out", str(out)]) == 2
    assert "no whole checkpoint in" in capsys.readouterr().err


def test_names_beside_a_model_of_anybodys_format(tmp_path, capsys):
    """Names are as examples/finetune_on_your_folder.py writes them."""
    small(in_channels=3).save_pretrained(tmp_path / "ours")
    checkpoints.convert(tmp_path / "ours", tmp_path / "theirs", "diffusers")
    command = ["--steps", "2", "--per-class", "1", "--out", str(tmp_path / "s.png")]
    assert main(["sample", str(tmp_path / "theirs"), "--classes", "1", *command]) == 0
    said, theirs = capsys.readouterr().out, pixels(tmp_path / "s.png")
    assert "note: diffusers runs these weights with other timestep frequencies" in said
    assert main(["sample", str(tmp_path / "ours"), "--classes", "1", *command]) == 0
    assert np.array_equal(pixels(tmp_path / "s.png"), theirs)
    (tmp_path / "classes.json").write_text(json.dumps(["ape", "bee", "cow"]))
    assert main(["sample", str(tmp_path / "ours"), "--classes", "bee", *command]) == 2
    assert "must be numbers: the model's classes have no names, got 'bee'" in capsys.readouterr().err
    (tmp_path / "classes.json").rename(tmp_path / "ours" / "classes.json")
    assert main(["sample", str(tmp_path / "ours"), "--classes", "bee", *command]) == 0
    (tmp_path / "ours" / "classes.json").write_text("{}")
    assert main(["sample", str(tmp_path / "ours"), *command]) == 2
    assert "must hold a JSON list of names" in capsys.readouterr().err


def test_latents_go_through_the_vae(tmp_path, capsys):
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 8), norm_num_groups=2, down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4, scaling_factor=0.5,
    )  # fmt: skip
    vae.save_pretrained(tmp_path / "vae")
    save_model(small(in_channels=4), tmp_path / "m.safetensors")
    command = ["sample", str(tmp_path / "m.safetensors"), "--out", str(tmp_path / "s.png"), "--steps", "2"]
    assert main(command) == 2
    assert "`--vae` must be given for a model of latents" in capsys.readouterr().err
    assert main([*command, "--vae", str(tmp_path / "vae"), "--classes", "1", "--per-class", "2"]) == 0
    latents = Sampler(load_model(tmp_path / "m.safetensors"), steps=2, cfg_scale=4.0)([1, 1])
    with torch.no_grad():
        wanted = to_uint8(vae.decode(latents / 0.5).sample)
    assert np.array_equal(pixels(tmp_path / "s.png"), np.concatenate(list(wanted.numpy()), axis=1))
    again = load_vae(tmp_path / "vae")
    torch.testing.assert_close(decode(again, latents), decode(again, latents, batch_size=1, scale=0.5))
    with pytest.raises(ValueError, match=r"`latents` must have shape \(N, 4, H, W\), got \(2, 3, 4, 4\)"):
        decode(again, latents[:, :3])
    assert main([*command, "--vae", str(tmp_path / "none")]) == 2


def test_the_file_that_fid_is_measured_on(checkpoint, tmp_path, capsys):
    command = ["sample", str(checkpoint), "--npz", str(tmp_path / "s.npz"), "--steps", "2", "--batch-size", "2"]
    assert main(command) == 2
    assert "`--npz` must come with --count" in capsys.readouterr().err
    assert main([*command, "--count", "5", "--labels", "balanced"]) == 0
    images = np.load(tmp_path / "s.npz")["arr_0"]
    assert images.shape == (5, 4, 4, 3) and images.dtype == np.uint8
    drawn = Sampler(load_model(checkpoint), steps=2, cfg_scale=4.0, clip_denoised=True)([0, 1, 2, 0, 1], batch_size=2)
    assert np.array_equal(images[..., :1], to_uint8(drawn).numpy())
    assert main([*command, "--count", "5", "--labels", "balanced", "--cfg-scale", "2"]) == 2
    assert "cfg_scale 4.0, got 2.0" in capsys.readouterr().err


def test_half_precision_and_a_model_without_labels(tmp_path, capsys):
    save_model(small().bfloat16(), tmp_path / "half.safetensors")
    out = str(tmp_path / "s.png")
    assert main(["sample", str(tmp_path / "half.safetensors"), "--steps", "2", "--out", out, "--per-class", "1"]) == 0
    save_model(small(num_classes=0), tmp_path / "free.safetensors")
    command = ["sample", str(tmp_path / "free.safetensors"), "--steps", "2", "--out", out]
    assert main([*command, "--count", "5"]) == 0
    assert Image.open(out).size == (12, 8)
    assert main([*command, "--cfg-scale", "2"]) == 2
    assert "`cfg_scale` must be 1: the model has no labels" in capsys.readouterr().err
    assert main([*command, "--classes", "1"]) == 2
    assert "`--classes` must be left out: the model has no labels" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options,message",
    [
        (["--classes", "3"], "`labels` must be from 0 to 2, got 3"),
        (["--classes", "cat"], "must be numbers: the model's classes have no names, got 'cat'"),
        (["--sampler", "dpm"], "`--sampler` must be ddpm, ddim, euler, heun or the name of a scheduler class"),
        (["--sampler", "NoScheduler"], "such as DPMSolverMultistepScheduler, got 'NoScheduler'"),
        (["--steps", "many"], "timestep_respacing: expected"),
        (["--cfg-channels", "few"], "`--cfg-channels` must be a number or all, got 'few'"),
        (["--count", "3"], "`--count` is for `--npz` and for models without labels"),
    ],
)
def test_what_is_wrong_is_said(checkpoint, capsys, options, message):
    assert main(["sample", str(checkpoint), "--steps", "2", *options]) == 2
    assert message in capsys.readouterr().err


def test_there_is_no_checkpoint(tmp_path, capsys):
    assert main(["sample", str(tmp_path / "none.safetensors")]) == 2
    assert "no checkpoint at" in capsys.readouterr().err
    assert main(["sample", str(tmp_path)]) == 2
    assert "must hold a config.json" in capsys.readouterr().err
