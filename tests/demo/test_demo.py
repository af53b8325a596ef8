# SPDX-License-Identifier: Apache-2.0
"""The demo end to end: a short run's files, and the full run's quality."""

import json

import numpy as np
import pytest

from dit_fast.cli import main
from dit_fast.demo import DemoConfig, run
from dit_fast.demo.quality import Judge, digits, halves

KEYS = {
    "class_match", "class_match_unguided", "real_accuracy", "frechet_generated", "frechet_real_halves",
    "train_seconds", "images_per_second",
}  # fmt: skip


def test_a_short_run_writes_everything_and_its_checkpoint_samples(tmp_path):
    metrics = run(tmp_path, DemoConfig(steps=3, sample_steps=4, per_class=10), progress=False)
    assert json.loads((tmp_path / "metrics.json").read_text()) == metrics
    assert metrics.keys() >= KEYS
    assert 0 <= metrics["class_match"] < 0.9  # an untrained model must not look good
    assert metrics["frechet_generated"] > 3 * metrics["frechet_real_halves"]
    for name in ("samples.png", "loss.png"):
        assert (tmp_path / name).stat().st_size > 1000
    assert main(["sample", str(tmp_path / "model.safetensors"), "--steps", "2", "--out", str(tmp_path / "s.png")]) == 0


def test_the_judge_is_honest():
    images, labels = digits()
    assert images.shape == (1797, 1, 8, 8) and images.min() == -1 and images.max() == 1
    judge = Judge(images, labels)
    assert judge.real_accuracy > 0.95
    assert judge.match(images, labels) > 0.95 > 0.2 > judge.match(images, (labels + 1) % 10)
    noise = np.random.default_rng(0).uniform(-1, 1, images.shape).astype(np.float32)
    first, second = halves(images)
    between_halves = judge.frechet(first, second)
    assert judge.frechet(first, first) == pytest.approx(0, abs=1e-3)
    assert between_halves < judge.frechet(first, images[labels < 5]) < judge.frechet(first, noise)
    assert judge.frechet(second, first) == pytest.approx(between_halves, rel=1e-6)


def test_the_full_run_draws_the_digits_it_was_asked_for(tmp_path):
    metrics = run(tmp_path, progress=False)
    assert metrics["samples"] == 500
    assert metrics["class_match"] >= 0.98
    assert metrics["class_match_unguided"] >= 0.90
