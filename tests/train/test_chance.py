# SPDX-License-Identifier: Apache-2.0
"""Batches, times, noise and label drops come from (seed, step) alone; the learning rate from the step."""

import pytest
import torch

from dit_fast.diffusion import create_diffusion, create_flow
from dit_fast.train import TrainConfig
from dit_fast.train.loader import Order, batches
from dit_fast.train.objective import draw, lr_factor, stream
from tests.train.source import Tiles

CPU = torch.device("cpu")


def test_every_epoch_is_a_permutation_and_every_step_can_be_asked_for_alone():
    order = Order(10, 4, seed=0)
    steps = [order(step) for step in range(6)]
    epochs = [steps[0] + steps[1], steps[2] + steps[3], steps[4] + steps[5]]
    assert all(len({*epoch}) == 8 and {*epoch} <= {*range(10)} for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert [Order(10, 4, seed=0)(step) for step in reversed(range(6))] == steps[::-1]
    assert Order(10, 4, seed=1)(0) != steps[0]
    with pytest.raises(ValueError, match="`batch_size` must be at most the number of images, 10, got 11"):
        Order(10, 11, seed=0)


def test_images_are_loaded_by_epoch_and_index():
    order = Order(32, 16, seed=0)
    given = list(batches(Tiles(), order, slice(4, 8), range(1, 4), workers=0, device=CPU))
    assert len(given) == 3
    for step, (x, y) in zip(range(1, 4), given, strict=True):
        assert x.shape == (4, 1, 4, 4) and y.tolist() == [index % 2 for index in order(step)[4:8]]
    first, second = (dict(zip(order(s) + order(s + 1), torch.cat(
        [x for x, _ in batches(Tiles(), order, slice(0, 16), range(s, s + 2), 0, CPU)]), strict=True)) for s in (0, 2)
    )  # fmt: skip
    assert first.keys() == second.keys()
    assert not any(torch.equal(first[index], second[index]) for index in first)  # another epoch, other chance


def test_draws_are_of_the_seed_and_the_step():
    diffusion, shape = create_diffusion(""), (4096, 1, 2, 2)
    a, b, other = (draw(diffusion, shape, 0.1, 0, step, CPU) for step in (5, 5, 6))
    assert torch.equal(a.t, b.t) and torch.equal(a.noise, b.noise) and torch.equal(a.dropped, b.dropped)
    assert not torch.equal(a.t, other.t) and not torch.equal(a.noise, other.noise)
    assert a.dropped.float().mean().item() == pytest.approx(0.1, abs=5 * (0.09 / 4096) ** 0.5)
    assert a.noise.mean().abs() < 0.05 and a.noise.std() == pytest.approx(1, abs=0.05)
    assert a.t.min() >= 0 and 990 < a.t.max() < 1000
    assert draw(create_flow(), shape, 0.0, 0, 5, CPU).t.is_floating_point()
    rows = a.rows(slice(8, 16))
    assert torch.equal(rows.t, a.t[8:16]) and torch.equal(rows.noise, a.noise[8:16])
    assert len({stream(*words) for words in ((0, "a"), (0, "b"), (1, "a"), (0, "a", 0))}) == 4


def test_learning_rate():
    constant = TrainConfig(steps=110, batch_size=1, warmup=10)
    assert [lr_factor(s, constant) for s in (0, 4, 9, 10, 109)] == [0.1, 0.5, 1.0, 1.0, 1.0]
    cosine = TrainConfig(steps=110, batch_size=1, warmup=10, lr_schedule="cosine")
    assert [lr_factor(s, cosine) for s in (0, 9, 10)] == [0.1, 1.0, 1.0]
    assert lr_factor(60, cosine) == pytest.approx(0.5) and lr_factor(110, cosine) == 0
