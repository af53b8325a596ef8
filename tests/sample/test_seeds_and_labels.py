# SPDX-License-Identifier: Apache-2.0
"""Noise is a function of (seed, image); labels are ids, names or a count."""

import pytest
import torch

from dit_fast.parity import compare
from dit_fast.sample import Sampler
from dit_fast.sample.labels import class_ids
from dit_fast.sample.noise import draw, stream_seed, streams
from tests.models.live import live_model

CPU = torch.device("cpu")


def zero(x, t, y):
    """A model that predicts no noise: images are then a function of their noise alone, each element of its own."""
    return torch.cat([torch.zeros_like(x), torch.zeros_like(x)], dim=1)


def noise_only(**options):
    return Sampler(zero, in_channels=2, num_classes=9, learn_sigma=True, steps=5, **options)


@pytest.mark.parametrize("method", ["ddpm", "ddim"])
def test_an_image_is_the_same_in_any_batch_order_and_call(method):
    sampler = noise_only(method=method, eta=1.0 if method == "ddim" else 0.0)
    options = dict(seed=11, size=(5, 3))
    whole = sampler(list(range(7)), **options)
    assert len({tuple(image.flatten().tolist()) for image in whole}) == 7
    for batch_size in (1, 2, 3):
        assert torch.equal(sampler(list(range(7)), batch_size=batch_size, **options), whole)
    some = [6, 2, 5]
    assert torch.equal(sampler(some, seeds=some, **options), whole[some])
    assert torch.equal(sampler(some, seeds=torch.tensor(some), **options), whole[some])
    assert not torch.equal(sampler(list(range(7)), seed=12, size=(5, 3)), whole)


def test_the_model_rounds_otherwise_in_another_batch_and_no_more():
    model = live_model(depth=2)
    exact = Sampler(model.double(), steps=4, cfg_scale=2.0)([1, 2, 3])
    model.float()
    plain = Sampler(model, steps=4, cfg_scale=2.0)([1, 2, 3], batch_size=1)
    got = Sampler(model, steps=4, cfg_scale=2.0)([1, 2, 3])
    assert compare(got, plain, exact, torch.float32)[2] <= 1


def test_streams_do_not_meet():
    """A CPU's generator sees 32 bits of its seed."""
    seeds = [stream_seed(seed, k) % 2**32 for seed in range(3) for k in range(1000)]
    assert len(set(seeds)) == 3000
    assert len({stream_seed(0, k) % 2**32 for k in (0, 1, 2**31, 2**32 - 1)}) == 4
    one, other = torch.empty(2, 1, 3, 4, 4), torch.empty(2, 1, 3, 4, 4)
    generators = streams(0, [5], CPU)
    for out in one:
        draw(generators, out)
    generators = streams(0, [5], CPU)
    draw(generators, other[0])
    draw(generators, other[1])
    assert torch.equal(one, other) and not torch.equal(one[0], one[1])
    many = torch.empty(1000, 64)
    draw(streams(0, range(1000), CPU), many)
    correlation = torch.corrcoef(many) - torch.eye(1000)
    assert correlation.abs().max() < 6 / 64**0.5 and abs(many.mean()) < 5 / 64000**0.5


def test_seeds_must_be_as_many_as_labels():
    with pytest.raises(ValueError, match="`seeds` must hold one number an image, 2, got 3"):
        noise_only()([1, 2], seeds=[1, 2, 3], size=4)


NAMES = ["tench, Tinca tinca", "Golden Retriever", "crane", "crane", "Maillot, tank suit", "maillot"]


@pytest.mark.parametrize(
    "labels,ids",
    [
        ([1, "golden retriever", 5], [1, 1, 5]),
        ("tinca tinca", [0]),
        (" Tench, tinca tinca ", [0]),
        ("maillot", [5]),
        ("tank suit", [4]),
        (torch.tensor([3, 0], dtype=torch.int32), [3, 0]),
        ((), []),
    ],
)
def test_labels(labels, ids):
    assert class_ids(labels, 6, NAMES) == ids


@pytest.mark.parametrize(
    "labels,classes,names,message",
    [
        ("crane", 6, NAMES, r"must name one class, 'crane' is that of \[2, 3\]"),
        ("golden retreiver", 6, NAMES, "must name one of the 6 classes, got 'golden retreiver'; near it: golden ret"),
        ("xyz", 6, NAMES, "must name one of the 6 classes, got 'xyz'$"),
        (["tench"], 6, None, "must be numbers: the model's classes have no names, got 'tench'"),
        ([6], 6, None, "must be from 0 to 5, got 6"),
        ([-1], None, None, "must be from 0, got -1"),
        (3, 6, None, "must be a list of classes, one an image, got 3"),
        (None, 6, None, "must be a list of classes, one an image, got None"),
        (torch.zeros(2), 6, None, r"must be integers of shape \(N,\), got torch.float32 \(2,\)"),
        (torch.zeros(2, 2, dtype=torch.long), 6, None, r"got torch.int64 \(2, 2\)"),
        ([1, 2], 0, None, r"must be a number of images: the model has no labels, got \[1, 2\]"),
        (torch.zeros(2), 0, None, r"got a tensor \(2,\)"),
        (-1, 0, None, "got -1"),
        (True, 0, None, "got True"),
    ],
)
def test_labels_that_are_none(labels, classes, names, message):
    with pytest.raises(ValueError, match="Sampler: `labels` .*" + message):
        class_ids(labels, classes, names)
