# SPDX-License-Identifier: Apache-2.0
"""examples/finetune_on_your_folder.py as a person runs it, on generated images."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dit_fast.models import DiT
from dit_fast.sample import sample
from tests.integrations.test_pipeline import vae
from tests.models.live import live_model

FILE = Path(__file__).parents[2] / "examples" / "finetune_on_your_folder.py"
SMALL = dict(input_size=4, hidden_size=48, depth=1, num_heads=2, num_classes=7)


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("finetune", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def photos(tmp_path):
    """Two classes, dark and bright, of sizes and modes as people have them."""
    rng = np.random.default_rng(0)
    for name, level in (("bright", 220), ("dark", 30)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(3):
            pixels = rng.integers(level - 20, level + 20, (12 + 4 * i, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).convert("L" if i == 1 else "RGB").save(tmp_path / "photos" / name / f"{i}.png")
    return tmp_path / "photos"


def test_in_pixels(example, photos, tmp_path, capsys):
    pretrained = live_model(in_channels=3, **SMALL).bfloat16()
    torch.save(pretrained.state_dict(), tmp_path / "release.pt")
    command = [str(photos), "--out", str(tmp_path / "mine"), "--steps", "3"]
    with pytest.raises(ValueError, match="say it with --num-heads"):  # a custom size's .pt does not know its heads
        example.main([*command, "--checkpoint", str(tmp_path / "release.pt")])
    pretrained.save_pretrained(tmp_path / "ours")
    example.main([*command, "--checkpoint", str(tmp_path / "ours")])
    assert "2 classes, 6 images, 3 steps" in capsys.readouterr().out
    assert json.loads((tmp_path / "mine" / "classes.json").read_text()) == ["bright", "dark"]
    model = DiT.from_pretrained(tmp_path / "mine")
    assert model.config == {**pretrained.config, "num_classes": 2}
    assert sample(model, torch.tensor([0, 1]), steps=2, cfg_scale=2.0).isfinite().all()


def test_the_pretrained_weights_are_where_it_starts(example, photos, tmp_path):
    pretrained = live_model(in_channels=3, **SMALL)
    model = example.with_classes(pretrained, 2)
    assert model.y_embedder.embedding_table.weight.shape == (3, 48)
    old, new = pretrained.state_dict(), model.state_dict()
    assert torch.equal(new[example.TABLE][-1], old[example.TABLE][-1])
    assert all(torch.equal(new[key], value) for key, value in old.items() if key != example.TABLE)


def test_in_latents(example, photos, tmp_path):
    vae().save_pretrained(tmp_path / "vae")
    live_model(in_channels=4, **SMALL).save_pretrained(tmp_path / "ours")
    command = [str(photos), "--checkpoint", str(tmp_path / "ours"), "--out", str(tmp_path / "mine"), "--steps", "2"]
    example.main([*command, "--vae", str(tmp_path / "vae")])
    assert DiT.from_pretrained(tmp_path / "mine").num_classes == 2
    with pytest.raises(SystemExit, match="the model takes 4 channels, images have 3: --vae"):
        example.main(command)


def test_a_folder_without_classes(example, tmp_path):
    live_model(in_channels=3, **SMALL).save_pretrained(tmp_path / "ours")
    (tmp_path / "flat").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "flat" / "one.png")
    with pytest.raises(SystemExit, match="must hold one folder of images for each class"):
        example.main([str(tmp_path / "flat"), "--checkpoint", str(tmp_path / "ours")])
