# SPDX-License-Identifier: Apache-2.0
"""One file, whole or not at all, and a clear word about any other file."""

import pytest
import torch
from safetensors.torch import save_file

from dit_fast.models import CONDITIONING, checkpoint, load_model, save_model

from .live import batch, live_model


@pytest.mark.parametrize("design", CONDITIONING)
def test_round_trip_is_bit_equal(tmp_path, design):
    model = live_model(conditioning=design, input_size=(8, 4), learn_sigma=False).bfloat16()
    save_model(model, tmp_path / "new" / "folder" / "model.safetensors")
    loaded = load_model(tmp_path / "new" / "folder" / "model.safetensors")
    assert loaded.config == model.config
    assert not loaded.training
    for key, value in model.state_dict().items():
        assert loaded.state_dict()[key].dtype == value.dtype and torch.equal(loaded.state_dict()[key], value), key
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
