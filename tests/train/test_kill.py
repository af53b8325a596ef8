# SPDX-License-Identifier: Apache-2.0
"""A run that is killed at random moments and started again, many times, ends as one that ran through: bit for bit."""

import random
import time

import pytest
import torch
from safetensors.torch import load_file

from dit_fast.models.runs import checkpoint_path, checkpoints, step_of
from dit_fast.train.files import read_log
from tests.train.processes import PATIENCE, start
from tests.train.programs import KILLED, killable

STEPS = KILLED["steps"]


def through(out, accesses=0, seconds=None):
    """Run on in `out` until it ends or is killed; how it ended."""
    process = start(killable, out, accesses)
    process.join(PATIENCE if seconds is None else seconds)
    if process.is_alive():
        process.kill()
        process.join()
    return process.exitcode


@pytest.fixture(scope="module")
def unharmed(tmp_path_factory):
    out = tmp_path_factory.mktemp("unharmed")
    start(print).join()  # the server imports torch
    begun = time.perf_counter()
    assert through(out) == 0
    return out, time.perf_counter() - begun


def last_files(out):
    """All tensors of the last checkpoint."""
    found = {}
    for file in checkpoint_path(out, STEPS).rglob("*.safetensors"):
        found |= {f"{file.name} {name}": tensor for name, tensor in load_file(file).items()}
    return found


def test_resume_is_exact(unharmed, tmp_path):
    reference, seconds = unharmed
    chance = random.Random(0)
    kills, in_saves, before = 0, 0, 0
    while kills < 32:
        if kills % 2:
            code = through(tmp_path, accesses=chance.randrange(1, 100))
        else:
            code = through(tmp_path, seconds=chance.uniform(0, seconds / 15))
        if code == 0:
            break
        kills += 1
        in_saves += any((tmp_path / "checkpoints").glob(".step-*.partial"))
        whole, damaged = checkpoints(tmp_path)
        assert not damaged
        now = step_of(whole[-1]) if whole else 0
        assert now >= before  # nothing is ever lost
        before = now
    assert kills >= 20 and in_saves >= 5
    assert through(tmp_path) == 0

    expected, found = last_files(reference), last_files(tmp_path)
    assert expected.keys() == found.keys() and len(expected) > 100
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
    assert not [*(tmp_path / "checkpoints").glob(".*")]
    check_log(reference, tmp_path)


def check_log(reference, out):
    """Each step has one record, the same as in the run that was left alone, and one checkpoint."""
    records = [[e for e in read_log(run / "log.jsonl") if e["event"] == "record"] for run in (reference, out)]
    steps = [entry["step"] for entry in records[1]]
    assert steps == [*range(1, STEPS + 1)]
    for key in ("loss", "grad_norm", "lr", "images"):
        assert [entry[key] for entry in records[0]] == [entry[key] for entry in records[1]]
