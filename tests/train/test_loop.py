# SPDX-License-Identifier: Apache-2.0
"""The training loop learns, repeats itself, averages weights and stops at a loss that is not a number."""

import copy

import pytest
import torch

from dit_fast.diffusion import create_diffusion
from dit_fast.models import DiT
from dit_fast.train.loop import TrainConfig, lr_factor, shuffled, train


def small() -> DiT:
    torch.manual_seed(0)
    return DiT(input_size=4, patch_size=2, in_channels=1, hidden_size=64, depth=1, num_heads=1, num_classes=2)


def data():
    g = torch.Generator().manual_seed(0)
    labels = torch.arange(32) % 2
    return (labels * 2.0 - 1).view(-1, 1, 1, 1) + 0.05 * torch.randn(32, 1, 4, 4, generator=g), labels


CONFIG = TrainConfig(steps=60, batch_size=16, lr=3e-3, warmup=5, ema=0.9)


def test_it_learns_and_a_second_run_is_bit_equal():
    first, second = (train(small(), create_diffusion(""), *data(), CONFIG, progress=False) for _ in range(2))
    assert len(first.losses) == 60 and first.losses == second.losses
    assert sum(first.losses[-10:]) < 0.5 * sum(first.losses[:10])
    for a, b in zip(first.ema.parameters(), second.ema.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not first.ema.training and first.images_per_second > 0


def test_the_average_starts_from_the_initial_weights():
    model = small()
    start = copy.deepcopy(model)
    result = train(model, create_diffusion(""), *data(), TrainConfig(steps=1, batch_size=8, lr=1e-2, ema=0.9), False)
    for old, new, mean in zip(start.parameters(), model.parameters(), result.ema.parameters(), strict=True):
        torch.testing.assert_close(mean, 0.9 * old + 0.1 * new)
    assert any(not torch.equal(a, b) for a, b in zip(start.parameters(), model.parameters(), strict=True))


def test_a_loss_that_is_not_a_number_stops_the_run():
    images, labels = data()
    images[3] = float("nan")
    with pytest.raises(FloatingPointError, match="the loss of step 0 is nan"):
        train(small(), create_diffusion(""), images, labels, TrainConfig(steps=5, batch_size=32), False)


def test_learning_rate_and_batches():
    config = TrainConfig(steps=110, batch_size=1, warmup=10)
    assert [lr_factor(s, config) for s in (0, 4, 9)] == [0.1, 0.5, 1.0]
    assert lr_factor(10, config) == 1 and lr_factor(60, config) == pytest.approx(0.5)
    assert lr_factor(110, config) == 0
    batches = shuffled(10, 4, torch.Generator().manual_seed(0))
    epoch = torch.cat([next(batches), next(batches)])
    assert len(set(epoch.tolist())) == 8
    with pytest.raises(ValueError, match="`batch_size` must be at most the number of images, 10, got 11"):
        next(shuffled(10, 11, torch.Generator()))
