# SPDX-License-Identifier: Apache-2.0
"""One process trains: it learns, repeats itself, averages, resumes, and stops where a loss is not a number."""

import pytest
import torch

from dit_fast.models import DiT
from dit_fast.train import TrainConfig, Trainer
from tests.train.source import Tiles

SMALL = {"hidden_size": 32, "depth": 1, "num_heads": 1, "patch_size": 2}


def config(tmp_path, **fields) -> TrainConfig:
    options = {
        "steps": 60, "batch_size": 16, "lr": 3e-3, "warmup": 5, "ema": 0.9, "model": "DiT", "model_args": SMALL,
        "precision": "float32", "workers": 0, "out": str(tmp_path), "save_every": 0, "log_every": 10,
    }  # fmt: skip
    return TrainConfig(**{**options, **fields})


def train(config: TrainConfig, source=None, **options):
    return Trainer(config, source or Tiles(), watchers=[], **options).run()


def test_it_learns_and_a_second_run_is_bit_equal(tmp_path):
    first, second = (train(config(tmp_path)) for _ in range(2))
    assert len(first.losses) == 60 and first.losses == second.losses
    assert sum(first.losses[-10:]) < 0.5 * sum(first.losses[:10])
    for a, b in zip(first.ema.parameters(), second.ema.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not first.ema.training and first.images_per_second > 0 and first.reason == "done"
    assert not [*tmp_path.iterdir()]
    other = train(config(tmp_path, seed=1, steps=2))
    assert other.losses != first.losses[:2]


def test_the_average_starts_from_the_initial_weights(tmp_path):
    trainer = Trainer(config(tmp_path, steps=1), Tiles(), watchers=[])
    start = [p.clone() for p in trainer.model.parameters()]
    result = trainer.run()
    trained = [*trainer.model.parameters()]
    for old, new, mean in zip(start, trained, result.ema.parameters(), strict=True):
        torch.testing.assert_close(mean, 0.9 * old + 0.1 * new)
    assert any(not torch.equal(a, b) for a, b in zip(start, trained, strict=True))


def test_it_goes_on_from_its_checkpoint(tmp_path):
    whole = train(config(tmp_path / "whole", steps=12))
    train(config(tmp_path, steps=8, save_every=4))
    rest = train(config(tmp_path, steps=12, save_every=4))
    assert rest.losses == whole.losses[8:]
    for a, b in zip(whole.ema.parameters(), rest.ema.parameters(), strict=True):
        assert torch.equal(a, b)
    saved = DiT.from_pretrained(tmp_path)
    for a, b in zip(whole.ema.parameters(), saved.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_loss_that_is_not_a_number_stops_the_run(tmp_path):
    with pytest.raises(FloatingPointError, match="the loss of step 0 is nan; images .* not finite: tile 3;"):
        train(config(tmp_path, batch_size=32), Tiles(nan=3))
