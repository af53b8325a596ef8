# SPDX-License-Identifier: Apache-2.0
"""Four processes train as one does: losses, weights, averages, checkpoints, and how they stop."""

import json

import pytest
import torch
from safetensors.torch import load_file

from dit_fast.models import DiT
from dit_fast.models.runs import read_manifest
from dit_fast.parity import ALLOWANCE, FLOOR_ULPS, distance
from tests.train.processes import run_ranks
from tests.train.programs import SAVED, STEPS, config, four_ranks, step, trained

RESUMED = ("one, then fsdp", "ddp, then hsdp", "fsdp, then ddp")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def one(folder):
    """A single process, and the same rounded to float32: how far rounding takes this run."""
    exact = trained(config(folder / "one", save_every=SAVED))
    return exact, trained(config(folder), torch.float32)


@pytest.fixture(scope="module")
def ranks(one, folder):
    return run_ranks(four_ranks, 4, folder)


def together(run, first=0):
    """Losses from step `first` on, and all else, as two vectors."""
    losses = run["losses"][-(STEPS - first) :]
    return {"losses": losses, "weights": torch.cat([v.double().ravel() for k, v in run.items() if k != "losses"])}


def check(got, one, first=0):
    """The yardstick is float32's distance from float64, in float64's roundings; both sides of this comparison round."""
    exact, rounded = one
    eps = torch.finfo(torch.float64).eps
    units = eps / torch.finfo(torch.float32).eps
    ours, theirs, true = together(got, first), together(rounded, first), together(exact, first)
    assert len(ours["losses"]) == STEPS - first
    for name in true:
        error, yardstick = distance(ours[name], true[name]), distance(theirs[name], true[name])
        for kind in error:
            assert 0 < yardstick[kind] < 1e-3
            allowed = ALLOWANCE[kind] * yardstick[kind] * units + FLOOR_ULPS[kind] * eps / 2
            assert error[kind] <= 2 * allowed, (name, kind)


@pytest.mark.parametrize("name", ["ddp", "fsdp"])
def test_four_ranks_compute_what_one_does(ranks, one, name):
    check(ranks[0][name], one)


@pytest.mark.parametrize("name", RESUMED)
def test_a_run_goes_on_with_other_ranks_and_shards(ranks, one, name):
    check(ranks[0][name], one, SAVED)


def test_one_rank_goes_on_from_four(ranks, one, folder):
    check(trained(config(folder, resume=step(folder / "fsdp"))), one, SAVED)


def test_checkpoints_of_shards_hold_whole_models(ranks, folder):
    for name in ("ddp", "fsdp"):
        path = folder / name / "checkpoints" / f"step-{STEPS:08d}"
        assert read_manifest(path)["world_size"] == 4
        ema, weights = DiT.from_pretrained(path).state_dict(), load_file(path / "model.safetensors")
        for key, value in ranks[0][name].items():
            if key != "losses":
                average = key.startswith("average ")
                assert torch.equal(ema[key.removeprefix("average ")] if average else weights[key], value)
        assert {f"rng/{rank}/cpu" for rank in range(4)} <= {
            key for file in (path / "state").glob("*.safetensors") for key in load_file(file)
        }


def test_every_parameter_is_gathered_once_a_pass_in_bf16_and_reduced_in_float32(ranks):
    seen = ranks[0]["gathers"]
    counts = seen["counts"]
    assert seen["dtypes"] == {"torch.float32"}
    assert counts == {
        "gathered bfloat16": 2 * seen["in blocks"] + seen["outside"],  # forward and backward; the rest stays gathered
        "scattered float32": seen["in blocks"] + seen["gradients"],
    }


def test_all_ranks_stop_at_a_loss_that_is_not_a_number(ranks, folder):
    said = {found["not a number"] for found in ranks}
    assert len(said) == 1
    assert "FloatingPointError: train: the loss of step 0 is nan; images" in said.pop()
    failed = folder / "nan" / "failed-step-0"
    batch, report = load_file(failed / "batch.safetensors"), json.loads((failed / "report.json").read_text())
    assert {name: len(tensor) for name, tensor in batch.items()} == dict.fromkeys(("x", "y", "t", "noise", "loss"), 32)
    assert [report["images"][row] for row in report["rows_not_finite"]] == ["tile 3"]
    assert batch["x"].isnan().flatten(1).any(1).nonzero().ravel().tolist() == report["rows_not_finite"]
    assert all(p.isfinite().all() for p in DiT.from_pretrained(failed).parameters())


def test_a_signal_to_one_rank_stops_all_after_the_same_step_with_a_checkpoint(ranks, folder):
    assert len({found["stopped"] for found in ranks}) == 1
    reason, steps = ranks[0]["stopped"]
    assert reason == "stopped" and 1 < steps < STEPS
    assert read_manifest(folder / "stopped" / "checkpoints" / f"step-{steps:08d}")["step"] == steps


def test_what_does_not_divide_is_refused(ranks):
    assert "`batch_size` must be a multiple of ranks * accumulate, 4 * 1, got 18" in ranks[0]["does not divide"]
    assert "`shard` must divide the number of ranks, 4, got 3" in ranks[0]["does not divide shards"]
