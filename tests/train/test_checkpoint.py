# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of one process: what is kept, what a full disk does, and what is refused."""

import errno
import json
import os
import pickle
import resource

import pytest
import torch
from safetensors.torch import load_file

from dit_fast.models import DiT
from dit_fast.models.runs import checkpoint_path, checkpoints, newest_checkpoint, read_manifest
from dit_fast.train import Trainer
from tests.train.source import Tiles
from tests.train.test_engine import ARGS, Notes, config, train


def saved(out):
    return [path.name for path in checkpoints(out)[0]]


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Four steps, saved after each of them; not to be written."""
    out = tmp_path_factory.mktemp("run")
    return out, train(config(out, save_every=1, keep=0))


@pytest.fixture
def copy(run, tmp_path):
    """The same to be spoiled, with two checkpoints."""
    train(config(tmp_path, save_every=1, keep=2))
    return tmp_path


def test_what_is_in_it(run):
    out, result = run
    path = newest_checkpoint(out)
    manifest = read_manifest(path)
    assert (manifest["step"], manifest["images"], manifest["epoch"], manifest["batch_of_epoch"]) == (4, 64, 2, 0)
    assert manifest["config"]["lr"] == 3e-3 and manifest["world_size"] == 1 and manifest["data"]["images"] == 32
    assert equal(DiT.from_pretrained(path), result.ema) and equal(DiT.from_pretrained(out), result.ema)
    raw = DiT.from_pretrained(path / "model.safetensors")
    assert not equal(raw, result.ema) and raw.config == result.ema.config
    state = {name for file in (path / "state").iterdir() for name in load_file(file)}
    assert {"rng/0/cpu", "model/x_embedder.proj.weight"} < state
    for key in ("step", "exp_avg", "exp_avg_sq", "ema"):
        assert f"optimizer/x_embedder.proj.weight/{key}" in state
    assert not [*(out / "checkpoints").glob(".*")]


def test_the_newest_are_kept(run, copy):
    assert saved(run[0]) == [f"step-0000000{step}" for step in (1, 2, 3, 4)]
    assert saved(copy) == ["step-00000003", "step-00000004"]


def test_nothing_is_unpickled(copy, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("unpickled")

    for module, name in ((pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (torch, "load")):
        monkeypatch.setattr(module, name, refuse)
    assert len(train(config(copy, steps=5)).losses) == 1


@pytest.mark.parametrize("steps", [2, 4])
def test_it_goes_on_where_it_was(run, tmp_path, steps):
    train(config(tmp_path, steps=steps, save_every=2))
    rest = train(config(tmp_path, save_every=2))
    assert rest.losses == run[1].losses[steps:] and equal(rest.ema, run[1].ema)


def test_by_path_and_into_another_folder(run, tmp_path):
    out, whole = run
    rest = train(config(tmp_path, resume=str(checkpoint_path(out, 2)), save_every=1))
    assert rest.losses == whole.losses[2:] and saved(tmp_path) == ["step-00000003", "step-00000004"]
    assert train(config(tmp_path / "b", resume=str(out))).losses == []
    with pytest.raises(ValueError, match="`out` must have no checkpoints later than `resume`.*step-00000004"):
        train(config(out, resume=str(checkpoint_path(out, 2))))
    with pytest.raises(ValueError, match="must have no checkpoints where `resume` is 'never'"):
        train(config(out, resume="never"))


@pytest.mark.parametrize("kind", ["a limit of the system", "no space left", "no space left for the last file"])
def test_a_full_disk_is_reported_and_training_goes_on(run, tmp_path, monkeypatch, caplog, kind):
    whole = run[1]
    train(config(tmp_path, steps=1, save_every=1))
    notes = Notes()
    if kind == "a limit of the system":
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        size = max(file.stat().st_size for file in checkpoint_path(tmp_path, 1).glob("*.safetensors"))
        resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, hard))
    else:
        last = kind.endswith("file")
        full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def fsync(descriptor, real=os.fsync):
            if not last or os.path.isdir(f"/proc/self/fd/{descriptor}"):
                raise full
            real(descriptor)

        monkeypatch.setattr(os, "fsync", fsync)
    try:
        result = train(config(tmp_path, save_every=1), watchers=[notes])
    finally:
        if kind == "a limit of the system":
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert result.losses == whole.losses[1:] and result.reason == "done"
    assert [(step, path) for step, path, _ in notes.saved] == [(2, None), (3, None), (4, None)]
    word = "too large" if kind == "a limit of the system" else "No space left"
    assert all(word in error for _, _, error in notes.saved)
    assert "step 2 could not be saved, training goes on" in caplog.text
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]
    monkeypatch.undo()
    assert train(config(tmp_path)).losses == result.losses


@pytest.mark.parametrize("file", ["model.safetensors", "ema.safetensors", "state", "manifest.json", "nothing left"])
def test_one_cut_short_is_passed_over_and_kept(run, copy, caplog, file):
    newest = newest_checkpoint(copy)
    victim = next((newest / "state").iterdir()) if file == "state" else newest / file
    if file == "nothing left":
        victim = newest / "config.json"
        victim.unlink()
    else:
        os.truncate(victim, victim.stat().st_size - 2)
    with pytest.raises(ValueError, match=f"not whole.*{victim.name}|{victim.name} is not whole"):
        train(config(copy, resume=str(newest)))
    rest = train(config(copy, save_every=1))
    assert rest.losses == run[1].losses[3:] and "passed over" in caplog.text
    assert saved(copy) == ["step-00000003", "step-00000004"]
    assert (copy / "checkpoints" / "step-00000004.damaged" / "state").is_dir()


def test_without_a_whole_one_nothing_is_begun_anew(copy):
    for path in checkpoints(copy)[0]:
        (path / "manifest.json").unlink()
    with pytest.raises(ValueError, match="no checkpoint in .* is whole: .*it has no manifest.json"):
        train(config(copy))


def test_foreign_ones_are_refused(run, copy, tmp_path):
    run[1].ema.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="is not a whole checkpoint of a training run: it has no manifest"):
        train(config(tmp_path / "new", resume=str(tmp_path / "model")))
    with pytest.raises(ValueError, match="no checkpoint of a training run at .*elsewhere"):
        train(config(tmp_path / "new", resume=str(tmp_path / "elsewhere")))
    manifest = newest_checkpoint(copy) / "manifest.json"
    content = json.loads(manifest.read_text())
    changes = {"`format` must be 'dit_fast.train'": {"format": "x"}, "`version` must be 1": {"version": 2}}
    for message, change in changes.items():
        manifest.write_text(json.dumps({**content, **change}))
        with pytest.raises(ValueError, match=message):
            train(config(tmp_path / "new", resume=str(manifest.parent)))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"seed": 1}, "`seed`: this run has 1, it has 0"),
        ({"batch_size": 8}, "`batch_size`: this run has 8, it has 16"),
        ({"objective": "flow"}, "`objective`: this run has 'flow', it has 'ddpm'; .*`learn_sigma`"),
        ({"noise_schedule": "squaredcos_cap_v2"}, "`noise_schedule`"),
        ({"model_args": {**ARGS, "hidden_size": 48}}, "model's `hidden_size`: this run has 48, it has 32"),
        ({"precision": "pure_bf16"}, "the weights' dtype: this run has 'bfloat16', it has 'float32'"),
        ({"steps": 3}, "`steps` must be at least 4, .* got 3"),
    ],
)  # fmt: skip
def test_another_run_is_refused(run, fields, message):
    out, _ = run
    with pytest.raises(ValueError, match=message):
        train(config(out, **fields))
    assert len(saved(out)) == 4


def test_other_data_is_refused(run):
    with pytest.raises(ValueError, match="data's `images`: this run has 33, it has 32"):
        train(config(run[0]), Tiles(33))


def test_what_may_change_is_said(run, caplog):
    with caplog.at_level("INFO", "dit_fast"):
        train(config(run[0], steps=5, lr=1e-3, accumulate=2, checkpointing=True))
    assert "with another accumulate, checkpointing, keep, lr, " in caplog.text


def test_what_a_dead_process_left_goes(copy):
    left = copy / "checkpoints" / ".step-00000009.partial"
    (left / "state").mkdir(parents=True)
    Trainer(config(copy), Tiles(), []).run()
    assert not left.exists()
