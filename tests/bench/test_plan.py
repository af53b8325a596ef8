# SPDX-License-Identifier: Apache-2.0
"""The planner: its arithmetic, that it invents no speed, and its formulas beside two processes on this machine."""

import json
import math
from dataclasses import replace

import pytest

from dit_fast.bench.plan import Request, plan, text
from dit_fast.bench.plan_check import FEW, MANY, MEASURED, PLANNED, check, link_of, text_of
from dit_fast.bench.plan_gpus import GPUS
from dit_fast.bench.plan_links import BUCKET, Link, collective_seconds, ddp_seconds, fsdp_seconds, link_between
from dit_fast.bench.plan_measured import find
from dit_fast.bench.schema import Result, Row
from dit_fast.cli import main
from dit_fast.models import DiT_models

WIRE = Link(1e9, 0.0, "a wire of 1 GB/s")


def step_row(batch: int, ms: float, **other: object) -> Row:
    told = {
        "kind": "train", "name": "DiT-S/8", "case": f"N={batch}", "dims": {"batch": batch, "tokens": 16},
        "dtype": "bfloat16", "direction": "step", "backend": "auto", "ours": True, "ms": ms,
        "peak_bytes": batch * 10**9, **other,
    }  # fmt: skip
    return Row(**told)


def result_of(*rows: Row, device: str = "NVIDIA H200", date: str = "2026-01-01T00:00:00+00:00") -> Result:
    return Result(date, "", {"device": device}, {"copy_gbytes_per_s": 4000.0}, {}, {}, list(rows))


@pytest.fixture
def files(tmp_path):
    result_of(
        step_row(8, 20.0), step_row(32, 50.0), step_row(32, 10.0, loaded=True, backend="busy"),
        step_row(32, 5.0, ours=False, backend="compile"), step_row(8, 1.0, dtype="float32"),
    ).write(tmp_path / "h200.json")  # fmt: skip
    result_of(step_row(8, 1.0), device="A CPU").write(tmp_path / "cpu.json")
    result_of(step_row(8, 40.0), date="2025-01-01T00:00:00+00:00").write(tmp_path / "old.json")
    (tmp_path / "other.json").write_text("{}")
    return sorted(tmp_path.glob("*.json"))


def test_collectives_take_what_rings_take():
    assert collective_seconds(8e9, 4, WIRE, 2) == pytest.approx(2 * 3 / 4 * 8)
    assert collective_seconds(8e9, 1, WIRE, 2) == 0
    slow = Link(1e9, 0.5, "")
    assert collective_seconds(0, 8, slow, 1, calls=2) == pytest.approx(2 * 3 * 0.5)


def test_a_long_backward_hides_all_but_the_last_bucket():
    moved = 10 * BUCKET
    total, exposed = ddp_seconds(moved, 2, WIRE, backward=1e6)
    assert total == pytest.approx(moved / 1e9)
    assert exposed == pytest.approx(total / 10)
    assert ddp_seconds(moved, 2, WIRE, backward=0.0) == (total, total)


def test_fsdp_moves_the_weights_twice_and_the_gradients_once():
    total, exposed = fsdp_seconds(2 * 10**9, 4 * 10**9, 4, 2, WIRE, forward=0.0, backward=0.0)
    assert total == exposed == pytest.approx((2 + 2 + 4) / 2)
    _, hidden = fsdp_seconds(2 * 10**9, 4 * 10**9, 4, 2, WIRE, forward=1e6, backward=1e6)
    assert hidden == pytest.approx((1 + 2) / 4)


def test_links_are_the_datasheets():
    h200 = GPUS["h200"]
    assert link_between(h200, 8, 1, 1.0, 0.0).bandwidth == 450e9
    assert link_between(h200, 64, 8, 1.0, 0.0).bandwidth == 8 * 50e9  # all adapters of a node at once
    assert link_between(h200, 4, 4, 0.5, 0.0).bandwidth == 25e9
    assert "NDR InfiniBand" in link_between(h200, 64, 8, 0.8, 0.0).source


def test_a_measured_step_is_found_and_read_between_its_batches(files):
    found = find(files, "h200", "DiT-S/8", "bf16")
    assert found.batches == {8: 20.0, 32: 50.0}  # not eager's, not float32's, not the loaded, not the older
    assert found.step_ms(8) == (20.0, "measured at 8 images")
    assert found.step_ms(16)[0] == pytest.approx(30.0)
    assert found.step_ms(64)[0] == pytest.approx(90.0)
    assert "extrapolated" in found.step_ms(64)[1]
    assert found.step_ms(1)[0] == pytest.approx(11.25)
    assert "h200.json, 2026-01-01, NVIDIA H200, backend auto" in found.source
    assert find(files, "b200", "DiT-S/8", "bf16") is None
    assert find(files, "h200", "DiT-S/4", "bf16") is None
    assert find(files, "h200", "DiT-S/8", "bf16", image_size=64) is None
    with pytest.raises(ValueError, match="`--results` must be results of `dit-fast bench train`, got .*other.json"):
        find(files, "h200", "DiT-S/8", "bf16", explicit=True)


def test_no_speed_is_invented():
    with pytest.raises(ValueError, match="no training step of DiT-S/8 in bf16 on a GPU named H200 has been measured"):
        plan(Request(model="DiT-S/8"))


def test_one_gpu_takes_what_was_measured(files):
    measured = find(files, "h200", "DiT-S/8", "bf16")
    alone = plan(Request(model="DiT-S/8", gpus=1, batch_size=8), measured)
    assert alone.step_ms == pytest.approx(20.0)
    assert alone.communication_ms == alone.sent_bytes == 0
    assert alone.scaling == 1
    assert "a step's peak beyond weights, moments and averages was measured: 8.0 GB" in alone.assumptions


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_many_gpus_pay_for_what_they_send(files, parallel):
    measured = find(files, "h200", "DiT-S/8", "bf16")
    request = Request(model="DiT-S/8", gpus=4, batch_size=32, parallel=parallel)
    found = plan(request, measured, WIRE)
    parameters = sum(p.numel() for p in DiT_models["DiT-S/8"]().parameters() if p.requires_grad)
    moved = parameters * (8 if parallel == "ddp" else 2 + 2 + 4)
    assert found.parameters == parameters
    assert found.sent_bytes == pytest.approx(0.75 * moved)
    assert found.communication_ms == pytest.approx(0.75 * moved / 1e6)
    optimizer = 36 * parameters / 4000e9 * 1e3
    saved = 0.75 * optimizer if parallel == "fsdp" else 0
    assert found.compute_ms == pytest.approx(20.0 - saved)
    assert found.step_ms == pytest.approx(found.compute_ms + found.exposed_ms)
    assert found.images_per_s == pytest.approx(32e3 / found.step_ms)
    state = sum(found.memory[part] for part in ("weights", "gradients", "moments", "average"))
    assert state == pytest.approx(20 * parameters / (4 if parallel == "fsdp" else 1))
    faster = plan(replace(request, gpus=4), measured, Link(1e15, 0.0, ""))
    assert faster.step_ms == pytest.approx(found.compute_ms, rel=1e-3)


def test_a_figure_given_by_the_user_is_called_one():
    told = plan(Request(model="DiT-S/8", gpus=1, batch_size=16, step_ms=7.0))
    assert told.step_ms == 7.0
    assert "as given (--step-ms)" in told.assumptions[0]
    assumed = plan(Request(model="DiT-S/8", gpus=1, batch_size=16, mfu=0.25))
    assert assumed.mfu == pytest.approx(0.25)
    assert "not measured" in assumed.assumptions[0]
    again = plan(Request(model="DiT-S/8", gpus=1, batch_size=16, mfu=0.25, checkpointing=True))
    assert again.step_ms == pytest.approx(assumed.step_ms * 4 / 3)
    assert again.memory["activations"] < assumed.memory["activations"]


@pytest.mark.parametrize(
    "options, expected",
    [
        ({"gpu": "x"}, "`--gpu` must be one of a100, h100, h200, b200, got 'x'"),
        ({"gpus": 0}, "`--gpus` must be at least 1, got 0"),
        ({"gpus": 6, "nodes": 4}, "`--nodes` must divide the 6 GPUs, got 4"),
        ({"gpus": 3}, "`--batch-size` must be a multiple of the 3 GPUs, got 256"),
        ({"mfu": 1.5}, "`--mfu` must be above 0 and at most 1, got 1.5"),
        ({"step_ms": -1.0}, "`--step-ms` must be above 0, got -1.0"),
    ],
)
def test_bad_requests_say_why(options, expected):
    with pytest.raises(ValueError, match=expected):
        plan(Request(**options))


def test_the_command(files, tmp_path, capsys):
    out = tmp_path / "plan.json"
    options = ["--model", "DiT-S/8", "--gpus", "64", "--batch-size", "512", "--results", str(files[1])]
    assert main(["plan", *options, "--json", str(out)]) == 0
    said = capsys.readouterr().out
    assert "64 x H200 in 8 nodes, 512 images a step, 8 a GPU" in said
    assert "- the step of 8 images on one GPU is 20.0 ms: measured at 8 images" in said
    written = json.loads(out.read_text())
    assert written["request"]["nodes"] == 8
    assert all(f"- {words}" in said for words in written["assumptions"])
    assert main(["plan", "--model", "DiT-S/8", "--gpu", "b200", "--results", str(files[1])]) == 2
    assert "has been measured" in capsys.readouterr().err


def test_it_says_when_memory_is_short():
    large = plan(Request(model="DiT-S/8:hidden_size=38400,num_heads=64,depth=4", gpus=1, batch_size=1, step_ms=1.0))
    assert not large.fits
    assert "does not fit" in text(large)


def test_a_link_is_read_off_two_all_reduces():
    wire = Link(2e9, 1e-3, "")
    found = link_of(*(collective_seconds(size, 2, wire, 2) for size in (FEW, MANY)))
    assert found.bandwidth == pytest.approx(2e9)
    assert found.latency == pytest.approx(1e-3)


def test_planned_beside_two_real_processes():
    """That it runs and says both; how near they are is for a quiet machine (benchmarks/results)."""
    result = check("DiT-S/8:depth=1,hidden_size=64,num_heads=1", 2, rounds=2)
    ms = {row.backend: row.ms for row in result.rows}
    assert list(ms)[:4] == ["1 process", "1 process beside another", MEASURED, PLANNED]
    assert all(math.isfinite(value) and value > 0 for value in ms.values())
    assert ms[PLANNED] >= ms["1 process beside another"]
    assert "measured over planned" in text_of(result)
