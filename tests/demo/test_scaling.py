# SPDX-License-Identifier: Apache-2.0
"""The scaling benchmark at a size that takes seconds: what it writes, and that it goes on where it was."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks import scaling
from benchmarks.scaling import LATENTS, QUICK, Settings, correlations, plot, pooled, run
from dit_fast.data import TensorSource

TINY = Settings(depths=(1, 2), patches=(4, 2, 1), max_gflops=0.0018, steps=2, batch_size=8, samples=70, sample_steps=2)


@pytest.fixture(autouse=True)
def cheap_judge(monkeypatch):
    """Pixels as features: the judge's training is the demo's test."""

    class Judge:
        def __init__(self, images, labels, seed):
            assert len(images) == len(labels) == 1797

        def features(self, images):
            return images[:, 0, ::2, ::2].reshape(len(images), -1)

    monkeypatch.setattr(scaling, "Judge", Judge)


def test_it_measures_every_model_and_goes_on_where_it_was(tmp_path, monkeypatch):
    file, runs = tmp_path / "r" / "results.json", tmp_path / "runs"
    measure, measured, most = scaling.measure, [], [2]

    def stopping(config, *arguments):
        if len(measured) == most[0]:
            raise KeyboardInterrupt
        measured.append(scaling.name_of(config))
        return measure(config, *arguments)

    monkeypatch.setattr(scaling, "measure", stopping)
    with pytest.raises(KeyboardInterrupt):
        run(TINY, file, runs, progress=False)
    assert measured == ["32x1/4", "32x1/2"]  # cheapest first
    assert [row["name"] for row in json.loads(file.read_text())["rows"]] == measured
    measured.clear()
    most[0] = 9
    result = run(TINY, file, runs, progress=False)
    assert measured == ["64x2/4", "32x1/1", "64x2/2"] and json.loads(file.read_text()) == result
    rows = result["rows"]
    assert all(row["frechet"] > result["frechet_real_halves"] > 0 and row["parameters"] > 0 for row in rows)
    assert result["correlation"] == correlations(rows) and result["environment"]["torch"] == torch.__version__
    plot(result, tmp_path / "docs" / "p.png")
    assert (tmp_path / "docs" / "p.png").stat().st_size > 1000
    with pytest.raises(ValueError, match=r"results.json: expected a run with settings .*'steps': 3.*, got one with"):
        run(replace(TINY, steps=3), file, runs, progress=False)


def test_the_correlation_is_pearsons():
    rows = [{"gflops": 10.0**k, "frechet": d} for k, d in enumerate((9.0, 4.0, 2.0, 1.0))]
    x, y = np.arange(4.0), np.array([9.0, 4.0, 2.0, 1.0])
    expected = ((x - x.mean()) * (y - y.mean())).mean() / x.std() / y.std()
    assert correlations(rows)["frechet"] == pytest.approx(expected) and expected < -0.9
    assert correlations(rows)["log_frechet"] == pytest.approx(np.corrcoef(x, np.log(y))[0, 1])
    assert correlations(rows[:2]) == {"frechet": None, "log_frechet": None}


def test_the_time_left_is_extrapolated():
    rows = [{"gflops": g, "train_seconds": 5 + 20 * g, "sample_seconds": 1.0} for g in (1.0, 2.0, 4.0)]
    assert scaling.minutes_left(rows, [10.0, 20.0]) == pytest.approx((206 + 406) / 60)
    assert scaling.minutes_left(rows[:2], [10.0]) is None
    slower_first = [{"gflops": g, "train_seconds": t, "sample_seconds": 0} for g, t in ((1, 90), (2, 30), (3, 30))]
    assert scaling.minutes_left(slower_first, [100.0]) == pytest.approx(50 / 60)


def test_latents_are_compared_by_their_coarse_structure():
    images = torch.randn(200, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    source = TensorSource(images)
    source.kind = "latents"
    distance, floor = scaling.yardstick(source)
    assert pooled(images.numpy()).shape == (200, 64)
    assert pooled(images.numpy())[3, 16 + 5] == pytest.approx(images[3, 1, 2:4, 2:4].mean())
    assert distance(images.numpy()) == pytest.approx(0, abs=1e-3) and floor > 0.1
    assert distance(images.numpy() + 1) == pytest.approx(64, rel=1e-3)


def test_what_is_asked_for_is_distributed_as_the_data_are():
    labels = torch.tensor([0] * 300 + [2] * 100)
    source = TensorSource(torch.zeros(400, 1, 2, 2), labels, ["a", "b", "c"])
    counts = np.bincount(scaling.labels_like(source, 4000, 0), minlength=3)
    assert counts[1] == 0 and abs(counts[0] - 3000) < 3.3 * (4000 * 0.75 * 0.25) ** 0.5


@pytest.mark.parametrize("settings", [QUICK, Settings(), LATENTS])
def test_models_have_the_shape_of_dit_s(tmp_path, settings):
    sizes = itertools.product(settings.depths, settings.patches)
    configs = [settings.config(depth, patch, tmp_path, "cpu") for depth, patch in sizes]
    assert len({scaling.name_of(config) for config in configs}) == len(configs) >= 12
    for config in configs:
        sizes = config.model_args
        assert sizes["hidden_size"] / sizes["depth"] == 384 / 12 and config.steps == settings.steps
