# SPDX-License-Identifier: Apache-2.0
"""Four processes train as one does: losses, weights, averages, checkpoints, and how they stop.

One test, since starting four processes is what costs: the functions below look at what they found.
"""

import json

import torch
from safetensors.torch import load_file

from dit_fast.models import DiT
from dit_fast.models.runs import read_manifest
from dit_fast.parity import ALLOWANCE, FLOOR_ULPS, distance
from tests.train.processes import run_ranks
from tests.train.programs import SAVED, STEPS, config, four_ranks, step, trained

RESUMED = ("one, then fsdp", "ddp, then hsdp", "fsdp, then ddp")


def test_four_ranks_do_what_one_does(tmp_path):
    one = trained(config(tmp_path / "one", save_every=SAVED))
    rounded = trained(config(tmp_path), torch.float32)  # how far rounding takes this run
    ranks = run_ranks(four_ranks, 4, tmp_path)
    first = ranks[0]
    for name in ("ddp", "fsdp"):
        same_numbers(name, first[name], one, rounded)
        whole_models_in_checkpoints(tmp_path / name, first[name])
    for name in RESUMED:
        same_numbers(name, first[name], one, rounded, SAVED)
    alone = trained(config(tmp_path, resume=step(tmp_path / "fsdp")))
    same_numbers("fsdp, then one", alone, one, rounded, SAVED)

    each_parameter_is_gathered_once_a_pass(first["gathers"])
    all_stop_at_a_loss_that_is_not_a_number({found["not a number"] for found in ranks}, tmp_path / "nan")
    all_stop_after_the_same_step({found["stopped"] for found in ranks}, tmp_path / "stopped")
    assert [found["full disk"] for found in ranks] == [2] * 4 and not [*(tmp_path / "full" / "checkpoints").iterdir()]
    assert "`batch_size` must be a multiple of ranks * accumulate, 4 * 1, got 18" in first["does not divide"]
    assert "`shard` must divide the number of ranks, 4, got 3" in first["does not divide shards"]


def same_numbers(name, got, one, rounded, first=0):
    """The yardstick is float32's distance from float64, in float64's roundings; both sides of this comparison round."""
    eps = torch.finfo(torch.float64).eps
    units = eps / torch.finfo(torch.float32).eps
    ours, theirs, true = together(got, first), together(rounded, first), together(one, first)
    assert len(ours["losses"]) == STEPS - first
    for part in true:
        error, yardstick = distance(ours[part], true[part]), distance(theirs[part], true[part])
        for kind in error:
            assert 0 < yardstick[kind] < 1e-3
            allowed = ALLOWANCE[kind] * yardstick[kind] * units + FLOOR_ULPS[kind] * eps / 2
            assert error[kind] <= 2 * allowed, (name, part, kind)


def together(run, first=0):
    """Losses from step `first` on, and all else, as two vectors."""
    losses = run["losses"][-(STEPS - first) :]
    return {"losses": losses, "weights": torch.cat([v.double().ravel() for k, v in run.items() if k != "losses"])}


def whole_models_in_checkpoints(out, run):
    path = out / "checkpoints" / f"step-{STEPS:08d}"
    assert read_manifest(path)["world_size"] == 4
    ema, weights = DiT.from_pretrained(path).state_dict(), load_file(path / "model.safetensors")
    for key, value in run.items():
        if key != "losses":
            saved = ema[key.removeprefix("average ")] if key.startswith("average ") else weights[key]
            assert torch.equal(saved, value), key
    state = {key for file in (path / "state").glob("*.safetensors") for key in load_file(file)}
    assert {f"rng/{rank}/cpu" for rank in range(4)} <= state


def each_parameter_is_gathered_once_a_pass(seen):
    """In bf16, of float32 parameters; gradients are scattered in float32."""
    assert seen["dtypes"] == {"torch.float32"}
    assert seen["counts"] == {
        "gathered bfloat16": 2 * seen["in blocks"] + seen["outside"],  # forward and backward; the rest stays gathered
        "scattered float32": seen["in blocks"] + seen["gradients"],
    }


def all_stop_at_a_loss_that_is_not_a_number(said, out):
    assert len(said) == 1
    assert "FloatingPointError: train: the loss of step 0 is nan; images" in said.pop()
    failed = out / "failed-step-0"
    batch, report = load_file(failed / "batch.safetensors"), json.loads((failed / "report.json").read_text())
    assert {name: len(tensor) for name, tensor in batch.items()} == dict.fromkeys(("x", "y", "t", "noise", "loss"), 32)
    assert [report["images"][row] for row in report["rows_not_finite"]] == ["tile 3"]
    assert batch["x"].isnan().flatten(1).any(1).nonzero().ravel().tolist() == report["rows_not_finite"]
    assert all(p.isfinite().all() for p in DiT.from_pretrained(failed).parameters())


def all_stop_after_the_same_step(ended, out):
    """The signal went to one rank."""
    assert len(ended) == 1
    reason, steps = ended.pop()
    assert reason == "stopped" and 1 < steps < STEPS
    assert read_manifest(out / "checkpoints" / f"step-{steps:08d}")["step"] == steps
