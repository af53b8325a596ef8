# SPDX-License-Identifier: Apache-2.0
"""One process trains: it learns, repeats itself, averages, draws, and stops where a number is none."""

import os
import signal

import pytest
import torch

from dit_fast.models import DiT
from dit_fast.parity import ALLOWANCE, distance
from dit_fast.train import TrainConfig, Trainer
from dit_fast.train.watch import Watcher
from tests.train.programs import Loose, live
from tests.train.programs import config as four_steps
from tests.train.source import Tiles

ARGS = {"hidden_size": 32, "depth": 1, "num_heads": 1, "patch_size": 2}


def config(out, **fields) -> TrainConfig:
    return four_steps(out, **{"model_args": ARGS, **fields})


def train(config: TrainConfig, source=None, watchers=(), **options):
    return Trainer(config, source or Tiles(), watchers, **options).run()


class Notes(Watcher):
    """What a run tells."""

    def __init__(self):
        self.records, self.drawn, self.saved, self.reason = [], [], [], None

    def record(self, record):
        self.records.append(record)

    def samples(self, step, images, labels):
        self.drawn.append((step, images, labels))

    def checkpoint(self, step, path, seconds, error):
        self.saved.append((step, path, error))

    def end(self, reason, info):
        self.reason = reason


def test_it_learns_and_a_second_run_is_bit_equal(tmp_path):
    options = {"steps": 60, "lr": 3e-3, "warmup": 5, "max_grad_norm": 0.0}
    first, second = (train(config(tmp_path, **options)) for _ in range(2))
    assert len(first.losses) == 60 and first.losses == second.losses
    assert sum(first.losses[-10:]) < 0.5 * sum(first.losses[:10])
    for a, b in zip(first.ema.parameters(), second.ema.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not first.ema.training and first.images_per_second > 0 and (first.reason, first.steps) == ("done", 60)
    assert not [*tmp_path.iterdir()]
    assert train(config(tmp_path, seed=1, steps=2)).losses != first.losses[:2]


def test_the_average_starts_from_the_initial_weights(tmp_path):
    trainer = Trainer(config(tmp_path, steps=1), Tiles(), [])
    start = [p.clone() for p in trainer.model.parameters()]
    result = trainer.run()
    trained = [*trainer.model.parameters()]
    for old, new, mean in zip(start, trained, result.ema.parameters(), strict=True):
        torch.testing.assert_close(mean, 0.9 * old + 0.1 * new)
    assert any(not torch.equal(a, b) for a, b in zip(start, trained, strict=True))


def test_micro_batches_and_recomputation_change_roundings_only(tmp_path):
    def weights(dtype=torch.float64, **options):
        model = live(config(tmp_path), dtype)
        train(config(tmp_path, **options), model=model)
        return torch.cat([p.detach().double().ravel() for p in model.parameters()])

    whole = weights()
    yardstick = distance(weights(torch.float32), whole)["rms"] * 2.0**-29  # float64 has 29 digits more
    assert distance(weights(accumulate=4), whole)["rms"] <= 2 * ALLOWANCE["rms"] * yardstick
    assert torch.equal(weights(checkpointing=True), whole)


def test_processes_that_load_change_nothing(tmp_path):
    alone, helped = (train(config(tmp_path, workers=workers)).losses for workers in (0, 2))
    assert alone == helped


@pytest.mark.parametrize("precision", ["bf16", "pure_bf16"])
def test_low_precision_goes_on_bit_equal(tmp_path, precision):
    def draw(model, labels, config):
        return model(torch.zeros(len(labels), 1, 4, 4), torch.zeros(len(labels)), labels)[:, :1]

    def state(trainer):
        return {name: trainer.optimizer.state[p] for name, p in trainer.model.named_parameters() if p.requires_grad}

    through = Trainer(config(tmp_path / "a", precision=precision, sample_every=2), Tiles(), [], draw=draw)
    through.run()
    train(config(tmp_path / "b", precision=precision, steps=2, save_every=1))
    again = Trainer(config(tmp_path / "b", precision=precision), Tiles(), [])
    result = again.run()
    for (name, a), b in zip(through.model.named_parameters(), again.model.parameters(), strict=True):
        assert torch.equal(a, b) and a.dtype == (torch.bfloat16 if precision == "pure_bf16" else torch.float32), name
    for a, b in zip(state(through).values(), state(again).values(), strict=True):
        assert ("master" in a) == (precision == "pure_bf16")
        assert all(torch.equal(a[key], b[key]) and a[key].dtype == torch.float32 for key in a)
    assert {p.dtype for p in result.ema.parameters()} == {torch.float32}


@pytest.mark.parametrize("fields", [{"objective": "flow"}, {"num_classes": 0}, {"class_dropout_prob": 0.0}])
def test_other_objectives_and_labels(tmp_path, fields):
    result = train(config(tmp_path, steps=40, warmup=0, max_grad_norm=0.0, **fields))
    assert sum(result.losses[-5:]) < 0.8 * sum(result.losses[:5])
    assert result.ema.learn_sigma == ("objective" not in fields)
    assert (result.ema.y_embedder is None) == ("num_classes" in fields)


def test_drawings_are_of_the_average_and_disturb_nothing(tmp_path):
    seen, notes = [], Notes()

    def draw(model, labels, config):
        seen.append([p.clone() for p in model.parameters()])
        assert not model.training and not torch.is_grad_enabled()
        torch.randn(3)
        return torch.linspace(-2, 2, len(labels)).view(-1, 1, 1, 1).expand(-1, 1, 4, 4)

    fields = {"sample_every": 2, "sample_count": 5, "log_every": 3}
    trainer = Trainer(config(tmp_path, **fields), Loose(), [notes], draw=draw)
    result = trainer.run()
    assert result.losses == train(config(tmp_path), Loose()).losses
    assert [step for step, _, _ in notes.drawn] == [2, 4] and notes.reason == "done"
    assert notes.drawn[0][1].dtype == torch.uint8 and notes.drawn[0][1][:, 0, 0, 0].tolist() == [0, 0, 128, 255, 255]
    assert notes.drawn[0][2].tolist() == [0, 0, 0, 1, 1]
    for a, b in zip(seen[-1], result.ema.parameters(), strict=True):
        assert torch.equal(a, b)
    assert [r.step for r in notes.records] == [3, 4] and [r.images for r in notes.records] == [48, 64]
    assert notes.records[0].loss == pytest.approx(sum(result.losses[:3]) / 3)
    assert notes.records[1].loss == result.losses[3] and notes.records[1].lr == 3e-3
    assert all(r.grad_norm > 0 and r.images_per_second > 0 and r.tflops > 0 for r in notes.records)


def test_a_watcher_that_raises_is_told_no_more(tmp_path, caplog):
    class Raises(Notes):
        def record(self, record):
            super().record(record)
            raise OSError("no network")

    raises, notes = Raises(), Notes()
    train(config(tmp_path, log_every=1), watchers=[raises, notes])
    assert len(raises.records) == 1 and raises.reason is None and len(notes.records) == 4
    assert caplog.text.count("Raises failed at `record`") == 1


def test_a_loss_that_is_not_a_number_stops_before_the_update(tmp_path):
    trainer = Trainer(config(tmp_path, batch_size=32, steps=2), Tiles(nan=3), [])
    start = [p.clone() for p in trainer.model.parameters()]
    with pytest.raises(FloatingPointError, match="loss of step 0 is nan; .* not finite: tile 3; .*failed-step"):
        trainer.run()
    kept = DiT.from_pretrained(tmp_path / "failed-step-0")
    for a, b, c in zip(start, trainer.model.parameters(), kept.parameters(), strict=True):
        assert torch.equal(a, b) and torch.equal(a, c)


@pytest.mark.parametrize("save_every", [0, 1])
def test_a_gradient_that_is_not_a_number_stops_the_run_and_is_not_saved(tmp_path, save_every):
    trainer = Trainer(config(tmp_path, log_every=100, save_every=save_every), Tiles(), [])
    calls = []

    def spoil(gradient):
        calls.append(0)
        return gradient * float("nan") if len(calls) == 2 else gradient

    trainer.model.final_layer.linear.weight.register_hook(spoil)
    with pytest.raises(FloatingPointError, match="the gradient of step 1 is nan.*not finite: none"):
        trainer.run()
    assert (tmp_path / "failed-step-1" / "batch.safetensors").is_file()
    saved = [p.name for p in (tmp_path / "checkpoints").glob("step*")] if save_every else []
    assert saved == ["step-00000001"] * save_every


def test_a_signal_ends_the_step_and_saves(tmp_path):
    class Stops(Notes):
        def record(self, record):
            os.kill(os.getpid(), signal.SIGTERM)

    notes = Stops()
    before = signal.getsignal(signal.SIGTERM)
    result = train(config(tmp_path, log_every=1, save_every=100), watchers=[notes])
    assert (result.reason, result.steps, notes.reason) == ("stopped", 2, "stopped")
    assert [step for step, _, _ in notes.saved] == [2] and signal.getsignal(signal.SIGTERM) is before
    assert train(config(tmp_path)).losses == train(config(tmp_path / "whole")).losses[2:]


def test_what_does_not_fit_is_refused(tmp_path):
    with pytest.raises(ValueError, match="`batch_size` must be at most the number of images, 32, got 33"):
        Trainer(config(tmp_path, batch_size=33), Tiles(), [])
    for fields, message in (
        ({"in_channels": 3}, "`model` must take the data's 1 channels, got one that takes 3"),
        ({"in_channels": 1, "num_classes": 1}, "`num_classes` must be 0 or at least the data's, 2, got 1"),
    ):
        with pytest.raises(ValueError, match=message):
            Trainer(config(tmp_path), Tiles(), [], model=DiT(input_size=4, **ARGS, **fields))
    unlabelled = Tiles()
    unlabelled.num_classes = 0
    with pytest.raises(ValueError, match="`num_classes` must be 0, for the data has no labels, got 1000"):
        Trainer(config(tmp_path), unlabelled, [], model=DiT(input_size=4, in_channels=1, **ARGS))


@pytest.mark.parametrize("compile", [True, "max-autotune"])
def test_the_model_is_compiled_where_asked(tmp_path, monkeypatch, compile):
    asked = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, mode: asked.append((type(self), mode)))
    Trainer(config(tmp_path, compile=compile), Tiles(), [])
    assert asked == [(DiT, None if compile is True else compile)]
