# SPDX-License-Identifier: Apache-2.0
"""`dit-fast train` as a person types it: a run, its rest after a stop, a dry run, drawings of latents."""

import logging
import re
import types

import pytest
import torch
from PIL import Image

from dit_fast.cli import main
from dit_fast.cli._drawing import Drawing
from dit_fast.cli._dry_run import dry_run
from dit_fast.data import TensorSource
from dit_fast.models import DiT
from dit_fast.parity import enliven
from dit_fast.train import TrainConfig
from dit_fast.train.configfile import load_config
from dit_fast.train.files import read_log

TINY = ["--model-args", "hidden_size=32,depth=1,num_heads=1", "--batch-size", "16", "--sample-steps", "2"]
EVERY = ["--save-every", "15", "--log-every", "5", "--sample-every", "15", "--sample-count", "9", "--keep", "1"]


def test_a_run_its_rest_and_what_they_leave(tmp_path, capsys):
    out = tmp_path / "run"
    command = ["train", "--preset", "digits", *TINY, *EVERY, "--out", str(out)]
    assert main([*command, "--steps", "15"]) == 0
    before = (out / "log.jsonl").read_text()
    (out / "log.jsonl").write_text(before + '{"event": "record", "step": 20, "loss": 1}\n{"eve')  # killed at step 20
    assert main([*command, "--steps", "30", "--dry-run"]) == 0
    assert "start    from" in capsys.readouterr().out
    assert main([*command, "--steps", "30"]) == 0
    said = capsys.readouterr()
    assert re.match(r"done after 30 of 30 steps, 0:\d\d:\d\d this time; checkpoints, samples and summary", said.out)
    assert "training: step 30 of 30, loss " in said.err
    log = read_log(out / "log.jsonl")
    assert [e["step"] for e in log if e["event"] == "record"] == [5, 10, 15, 20, 25, 30]
    assert [e["step"] for e in log if e["event"] in ("start", "end")] == [0, 15, 15, 30]
    assert (out / "log.jsonl").read_text().startswith(before)
    assert [path.name for path in sorted((out / "samples").iterdir())] == ["step-00000015.png", "step-00000030.png"]
    assert Image.open(out / "samples" / "step-00000030.png").size == (26, 26)
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["step-00000030"]
    assert all((out / name).stat().st_size for name in ("summary.md", "summary.png"))
    config = load_config(None, out / "config.yaml")
    assert config.steps == 30 and config.model_args == {"patch_size": 2, "hidden_size": 32, "depth": 1, "num_heads": 1}
    model = DiT.from_pretrained(out / "checkpoints" / "step-00000030")
    assert model.config["hidden_size"] == 32 and model.config["num_classes"] == 10 and not model.training


def test_a_dry_run_says_what_a_run_would_be_and_writes_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--preset", "digits", "--dry-run"]) == 0
    said = capsys.readouterr().out
    for part in (
        "model    DiT, 558,440 parameters", "0.005692 Gflops an image as the paper counts, multiply-adds (MACs);"
        " 0.01138 GFLOPs forward, 0.03415 to train on it", "start    anew, in runs/digits",
        "data     digits: pixels (1, 8, 8), 1,797 images, 10 classes (0, 1, 2 ...)",
        "1,500 steps of 128 images: 106.8 epochs", "in one process, 128 images at a time; with checkpointing ",
    ):  # fmt: skip
        assert part in said, said
    assert main(["train", "--preset", "DiT-XL/2", "--dry-run", "--ranks", "8", "--parallel", "fsdp"]) == 0
    said = capsys.readouterr().out
    assert "675,129,632 parameters" in said and "118.6 Gflops" in said
    kept, recomputed = re.findall(
        r"about (\S+) GiB in each of 8 processes \(fsdp\), 32 images at a time; with checkpointing (\S+) GiB", said
    )[0]
    assert float(recomputed) < 0.5 * float(kept)
    assert "data     none given: reckoned for latents (4, 32, 32) and 1000 classes" in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments,message",
    [
        (["--preset", "digit"], "the nearest known one is digits"),
        (["--preset", "digits", "--batch-size", "2048"], "`batch_size` must be at most the number of images, 1797"),
        (["--preset", "digits", "--ranks", "3"], "`batch_size` must be a multiple of"),
        (["--preset", "digits", "--lr", "fast"], "`lr` must be a number, got 'fast'"),
        (["--preset", "digits", "--data", "no/such/folder here"], "nothing at no/such/folder here"),
        (["none.yaml"], "no configuration at none.yaml"),
        (["--preset", "digits", "--model-args", "num_heads=5"], "`hidden_size` must be a multiple of num_heads"),
    ],
)
def test_a_dry_run_finds_what_is_wrong(arguments, message, capsys):
    assert main(["train", "--dry-run", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_an_unknown_flag_names_the_nearest(capsys):
    near_ones = {"--batchsize": "--batch-size", "--sample_every=3": "--sample-every", "--batch": "--batch-size"}
    for typed, near in near_ones.items():
        with pytest.raises(SystemExit) as stopped:
            main(["train", typed, "3"])
        assert stopped.value.code == 2
        assert f"; the nearest known one is {near}" in capsys.readouterr().err


def test_a_run_without_a_library_or_with_a_loss_that_is_not_a_number(tmp_path, capsys, monkeypatch):
    command = ["train", "--preset", "digits", *TINY, "--steps", "2", "--out", str(tmp_path)]
    assert main([*command, "--wandb", "project"]) == 2
    assert "`wandb` needs wandb: pip install wandb" in capsys.readouterr().err

    def stop(self):
        raise FloatingPointError("at 1")

    monkeypatch.setattr("dit_fast.train.engine.Trainer.run", stop)
    assert main(command) == 1 and "dit-fast train: at 1" in capsys.readouterr().err
    assert main([*command, "--class-dropout-prob", "0"]) == 2
    assert "`sample_scale` must be 1 where `class_dropout_prob` is 0" in capsys.readouterr().err


def source(kind: str, classes: int, **manifest) -> TensorSource:
    made = TensorSource(torch.zeros(4, 4, 8, 8), torch.arange(4) % classes if classes else None)
    made.kind, made.manifest = kind, manifest
    return made


def tiny(classes: int, channels: int = 4, **options) -> DiT:
    return enliven(DiT(
        input_size=8, in_channels=channels, hidden_size=32, depth=1, num_heads=1, num_classes=classes, **options
    ))  # fmt: skip


@pytest.mark.parametrize("objective", ["ddpm", "flow"])
def test_drawings_repeat_themselves_and_know_models_without_labels(objective):
    config = TrainConfig(objective=objective, sample_steps=2, sample_count=3)
    for classes, labels in ((2, torch.tensor([0, 1, 1])), (0, None)):
        model = tiny(classes, 1, learn_sigma=objective == "ddpm").eval()
        draw = Drawing(config, source("pixels", classes))
        first = draw(model, labels, config)
        assert first.shape == (3, 1, 8, 8) and first.abs().max() <= 1
        assert torch.equal(first, draw(model, labels, config))


def test_latents_are_decoded_or_shown_and_that_is_said(monkeypatch, caplog):
    config = TrainConfig(sample_steps=2, sample_count=3, sample_scale=1.0)
    model = tiny(2).eval()
    labels = torch.tensor([0, 1, 1])
    loaded: list[str] = []

    def load(name, device):
        loaded.append(name)
        if name == "gone":
            raise FileNotFoundError("no AutoencoderKL at gone")
        return types.SimpleNamespace(name=name)

    def decode(vae, latents):
        return latents.new_full((len(latents), 3, 64, 64), 2)

    monkeypatch.setattr("dit_fast.cli._drawing.load_vae", load)
    monkeypatch.setattr("dit_fast.cli._drawing.fingerprint", lambda vae: "f" + vae.name)
    monkeypatch.setattr("dit_fast.cli._drawing.decode", decode)
    draw = Drawing(config, source("latents", 2, vae="v", vae_sha256="fv"))
    assert not loaded  # before the first drawing
    for _ in range(2):
        images = draw(model, labels, config)
    assert images.shape == (3, 3, 64, 64) and images.max() == 1 and loaded == ["v"]
    caplog.set_level(logging.WARNING, "dit_fast")
    for manifest, reason in (
        ({"vae": "gone"}, "no AutoencoderKL at gone"), ({}, "the data names none"),
        ({"vae": "v", "vae_sha256": "other"}, "not the one that encoded"),
    ):  # fmt: skip
        caplog.clear()
        draw = Drawing(config, source("latents", 2, **manifest))
        assert draw(model, labels, config).shape == draw(model, labels, config).shape == (3, 3, 8, 8)
        assert len(caplog.records) == 1 and reason in caplog.text and "first channels, not images" in caplog.text


def test_a_dry_run_is_of_the_ranks_there_are():
    assert "in one process, 256 images at a time" in dry_run(TrainConfig())
    assert "each of 2 processes (ddp), 32 images at a time" in dry_run(TrainConfig(accumulate=4), 2)
