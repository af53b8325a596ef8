# SPDX-License-Identifier: Apache-2.0
"""How cost grows: the points of each axis, rows of a tiny model, and where growth turns quadratic."""

import pytest

from dit_fast.bench import growth
from dit_fast.bench.ceilings import Ceilings
from dit_fast.bench.page_charts import growth_charts
from dit_fast.bench.session import Options, Session
from dit_fast.models import DiT_models, count_macs

from .result import growth as line


def test_the_axes_reach_as_far_as_they_should():
    points = list(growth.variants(growth.MODELS["cuda"], growth.BATCHES, 32))
    reach = {axis: [p.value for p in points if p.axis == axis] for axis in ("batch", "tokens", "depth", "width")}
    assert (min(reach["batch"]), max(reach["batch"])) == (1, 256)
    assert (min(reach["tokens"]), max(reach["tokens"])) == (64, 4096)
    assert max(reach["depth"]) == 28
    assert max(reach["width"]) == 1152
    assert all(values == sorted(values) for values in reach.values())


def test_half_of_the_work_is_attentions_where_it_says():
    depth, width = 3, 64
    tokens = growth.equal_share(width)
    at = {size: count_macs(DiT_models["DiT-S/2"](input_size=size, hidden_size=width, depth=depth, num_heads=1), size,
                           size) for size in (4, 8, 16)}  # fmt: skip
    counts = {(size // 2) ** 2: macs for size, macs in at.items()}
    (a, fa), (b, fb), (c, fc) = sorted(counts.items())
    square = ((fc - fa) / (c - a) - (fb - fa) / (b - a)) / (c - b)  # of the parabola through three counts
    assert square == 2 * width * depth
    block = depth * (12 * tokens * width**2 + 6 * width**2)
    assert square * tokens**2 == pytest.approx(block)


@pytest.mark.parametrize(
    "points, expected",
    [
        ([(1, 1), (2, 2), (4, 4)], None),
        ([(1, 1), (2, 4), (4, 16)], 1),
        ([(1, 1), (2, 2), (4, 8)], 2),  # slopes 1 and 2 around 2: 1.5 in the middle
        ([(1, 1), (2, 4), (4, 8)], None),  # steep, but not to the end
    ],
)
def test_where_the_slope_passes_one_and_a_half(points, expected):
    found = growth.steepening(points)
    assert found is None if expected is None else found == pytest.approx(expected)


def test_rows_of_a_tiny_model(monkeypatch):
    tiny = dict.fromkeys(("batch", "tokens", "depth", "width"), "DiT-S/8:depth=1,hidden_size=64,num_heads=1")
    monkeypatch.setattr(growth, "MODELS", {"cpu": tiny})
    for name, values in {"SIZES": (16, 32), "DEPTHS": (1, 2), "WIDTHS": (64, 128)}.items():
        monkeypatch.setattr(growth, name, values)
    told = Options(rounds=1, dtypes=("float32",), batches=(1, 2), peers=("none",), backends=("auto",))
    rows = list(growth.rows(Session(told, Ceilings(10.0, {"float32": 0.1}))))
    ours = [row for row in rows if row.ours]
    assert [row.case for row in ours] == [
        "batch=1", "batch=2", "tokens=4", "tokens=16", "depth=1", "depth=2", "width=64", "width=128",
    ]  # fmt: skip
    for row in rows:
        axis, value = row.case.split("=")
        assert row.dims[axis] == int(value)
        assert row.name == tiny[axis]
        assert row.kind == "growth"
        assert row.peak_bytes > 0
    sizes = {row.case: row.repeat for row in ours}
    assert "--image-size 16" in sizes["tokens=4"]
    assert "depth=2,hidden_size=64" in sizes["depth=2"]
    assert sizes["depth=2"].startswith("dit-fast bench model --model DiT-S/8:depth=2")
    charts = list(growth_charts(rows))
    assert [chart.y for chart in charts] == ["ms", "MiB"] * 4


def test_charts_say_where_it_bends():
    charts = {c.title.split(": ")[1]: c for c in growth_charts([*line("tokens", [64, 256, 1024, 4096], 1.8),
                                                                *line("batch", [1, 4, 16], 1.0)])}  # fmt: skip
    tokens, batch = charts["time by tokens"], charts["time by batch"]
    assert [round(mark.x) for mark in tokens.marks] == [2304, 64]
    assert "half of the work at T = 2304" in tokens.note
    assert "from tokens = 64 on" in tokens.note
    assert batch.marks == []
    assert batch.note == "Measured (auto): the slope in log-log is 1.00 at its steepest and 1.00 at the end."
    assert [(s.name, s.own) for s in tokens.series] == [("auto", True), ("eager", False)]
