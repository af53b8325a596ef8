# SPDX-License-Identifier: Apache-2.0
"""One file or folder, whole or not at all, and a clear word about any other file; the hub, without a network."""

import json
import sys

import huggingface_hub
import huggingface_hub.hub_mixin
import pytest
import torch
from safetensors.torch import save_file

from dit_fast.models import CONDITIONING, DiT, checkpoint, load_model, save_model

from .live import batch, live_model


def assert_same_weights(a, b):
    assert a.state_dict().keys() == b.state_dict().keys()
    for key, value in b.state_dict().items():
        assert a.state_dict()[key].dtype == value.dtype and torch.equal(a.state_dict()[key], value), key


@pytest.mark.parametrize("design", CONDITIONING)
def test_round_trip_is_bit_equal(tmp_path, design):
    model = live_model(conditioning=design, input_size=(8, 4), learn_sigma=False).bfloat16()
    save_model(model, tmp_path / "new" / "folder" / "model.safetensors")
    loaded = load_model(tmp_path / "new" / "folder" / "model.safetensors")
    assert loaded.config == model.config
    assert not loaded.training
    assert_same_weights(loaded, model)
    x, t, y = batch(model, 2, 8, 4)
    assert torch.equal(loaded(x.bfloat16(), t, y), model(x.bfloat16(), t, y))


def test_an_interrupted_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    save_model(live_model(), path)
    before = path.read_bytes()

    def half_written(weights, file, metadata):
        file.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", half_written)
    with pytest.raises(OSError, match="No space left"):
        save_model(live_model(seed=1), path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


def test_files_that_are_not_ours(tmp_path):
    path = tmp_path / "model.safetensors"
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*model\.safetensors"):
        load_model(path)
    save_model(live_model(), path)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        load_model(path)
    path.write_text("hello")
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        load_model(path)
    for config in ('{"depth": 1}', '{"deep": 1}', "{"):
        save_file({"weight": torch.zeros(2)}, path, metadata={checkpoint.HEADER: config})
        with pytest.raises(ValueError, match=r"the weights of .* do not fit its configuration"):
            load_model(path)
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match="holds no dit_fast configuration"):
        load_model(path)


def test_a_folder_and_what_else_is_in_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # not needed, not asked: what exists is local
    model = live_model(input_size=(8, 4)).bfloat16()
    (tmp_path / "mine.txt").write_text("stays")
    for _ in range(2):
        model.save_pretrained(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "mine.txt", "model.safetensors"]
    assert json.loads((tmp_path / "config.json").read_text()) == model.config
    for path in (tmp_path, str(tmp_path), tmp_path / "model.safetensors"):
        loaded = DiT.from_pretrained(path)
        assert loaded.config == model.config and not loaded.training
        assert_same_weights(loaded, model)

    class Mine(DiT):
        pass

    assert type(Mine.from_pretrained(tmp_path)) is Mine
    save_file(model.state_dict(), tmp_path / "model.safetensors")  # as another library writes it: config.json alone
    assert DiT.from_pretrained(tmp_path).config == model.config


def test_folders_that_are_not_ours(tmp_path):
    live_model().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_heads": 3}))
    with pytest.raises(ValueError, match=r"config\.json and the header of .* must agree, they differ in num_heads"):
        DiT.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ValueError, match="must be a JSON object, got list"):
        DiT.from_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match="`dit-fast convert` reads those of others"):
        DiT.from_pretrained(tmp_path.parent)
    for path in (tmp_path / "none", "./none", "a/b/c", "none.safetensors"):
        with pytest.raises(FileNotFoundError, match="no checkpoint at"):
            DiT.from_pretrained(path)


def test_without_huggingface_hub_a_repository_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ModuleNotFoundError, match=r"some/model is no local path: .*pip install 'dit_fast\[hub\]'"):
        DiT.from_pretrained("some/model")


def test_to_the_hub_and_back(tmp_path, monkeypatch):
    """What huggingface_hub would upload is what it then gives back."""
    repository, asked, model = tmp_path / "repository", {}, live_model(class_dropout_prob=0.0).bfloat16()

    def upload(self, *, folder_path, **options):
        folder_path.rename(repository)
        folder_path.mkdir()
        return "https://hub/commit"

    def download(repo_id, **options):
        asked.update(options, repo_id=repo_id)
        return str(repository)

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", lambda self, repo_id, **options: Repo)
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", upload)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    mixin = sys.modules["huggingface_hub.hub_mixin"]
    monkeypatch.setattr(mixin, "hf_hub_download", lambda *a, **k: str(repository / "config.json"))
    assert model.push_to_hub("me/digits", private=True) == "https://hub/commit"
    assert sorted(p.name for p in repository.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert "library_name: dit_fast" in (repository / "README.md").read_text()
    back = DiT.from_pretrained("me/digits", revision="v1", local_files_only=True)
    assert (asked["repo_id"], asked["revision"], asked["local_files_only"]) == ("me/digits", "v1", True)
    assert asked["allow_patterns"] == ["config.json", "model.safetensors"]
    assert type(back) is DiT and back.config == model.config
    assert_same_weights(back, model)


class Repo:
    repo_id = "me/digits"
