# SPDX-License-Identifier: Apache-2.0
"""What changed between two results and between two commits; the README's tables; a GPU's parts as one file."""

import argparse
import re
from dataclasses import replace
from pathlib import Path
from random import Random
from xml.etree import ElementTree

import pytest

from benchmarks import end_to_end, readme
from dit_fast.bench import base, model, runner, sample, train
from dit_fast.bench.compare import compare, uncertainty
from dit_fast.bench.recipe import parse_model
from dit_fast.bench.schema import Result, Row, read, summary
from dit_fast.bench.session import Options
from dit_fast.cli import main

ROOT = Path(__file__).parents[2]
OURS = Row("model", "DiT-S/2", "N=2", {"batch": 2}, "float32", "forward", "auto", True, ms=10.0, spread=0.02, rounds=16)
EAGER = replace(OURS, backend="eager", ours=False, ms=20.0)
ABOUT = {"device": "a CPU", "threads": "2", "instruction set": "avx2", "torch": "2", "commit": "0123456789ab"}


def write(path, *rows, **changed):
    result = Result("2026-01-02T03:04:05+00:00", "dit-fast bench", ABOUT, {"copy_gbytes_per_s": 1.0}, {}, {}, [*rows])
    replace(result, **changed).write(path)
    return path


def verdicts(before, after, threshold=0.05):
    return [change.verdict(threshold) for change in compare([before], [after])[0]]


def test_a_change_counts_beyond_noise_and_threshold():
    assert verdicts(OURS, replace(OURS, ms=11.0)) == ["slower"]
    assert verdicts(OURS, replace(OURS, ms=9.0)) == ["faster"]
    assert verdicts(OURS, replace(OURS, ms=10.4)) == ["same"]  # within the threshold
    assert verdicts(OURS, replace(OURS, ms=10.4), 0.01) == ["slower"]
    assert verdicts(replace(OURS, spread=0.5), replace(OURS, ms=11.0)) == ["same"]  # within the noise
    assert verdicts(OURS, replace(OURS, ms=11.0, rounds=1)) == ["same"]  # one call proves nothing
    assert verdicts(OURS, replace(OURS, ms=99.0, loaded=True)) == ["loaded"]
    assert compare([OURS], [EAGER]) == ([], [OURS], [EAGER])
    four_times_the_calls = replace(OURS, rounds=4 * OURS.rounds)
    assert uncertainty(four_times_the_calls) == pytest.approx(uncertainty(OURS) / 2)


def test_the_interval_covers_what_normal_noise_does():
    """Of many pairs of runs of the same speed, about one in twenty is called a change."""
    random, called = Random(0), 0
    for _ in range(600):
        pair = []
        for _ in range(2):
            timing = summary([random.gauss(1.0, 0.1) for _ in range(25)])
            pair.append(replace(OURS, ms=timing.ms, spread=timing.spread, rounds=25))
        called += verdicts(*pair, threshold=0.0) != ["same"]
    assert 0.02 < called / 600 < 0.12


def test_compare_exits_with_1_on_a_regression_of_ours(tmp_path, capsys):
    a = write(tmp_path / "a.json", OURS, EAGER)
    slower = write(tmp_path / "b.json", replace(OURS, ms=12.0), EAGER)
    peer_slower = write(tmp_path / "c.json", OURS, replace(EAGER, ms=30.0), environment={**ABOUT, "torch": "3"})
    assert main(["bench", "--compare", str(a), str(slower)]) == 1
    assert "1 regressions of ours" in capsys.readouterr().out
    assert main(["bench", "--compare", str(a), str(slower), "--threshold", "0.3"]) == 0
    assert main(["bench", "--compare", str(a), str(peer_slower)]) == 0
    assert "differs: torch: 2 -> 3" in capsys.readouterr().out
    fat = [write(tmp_path / f"{n}.json", replace(OURS, peak_bytes=n << 20)) for n in (1, 2)]
    assert main(["bench", "--compare", *map(str, fat)]) == 1
    assert main(["bench", "--compare", *map(str, fat[::-1])]) == 0
    none = write(tmp_path / "d.json", replace(OURS, name="DiT-B/2"))
    assert main(["bench", "--compare", str(a), str(none)]) == 2
    assert "needs rows that are in both" in capsys.readouterr().err


def test_base_takes_turns_and_reports_ratios(monkeypatch, capsys, tmp_path):
    order = []

    def measured(folder, words, result):
        here = folder == ROOT
        order.append(here)
        assert words == ["model", "--model", "DiT-S/2", "--batch", "2", "--rounds", "3", "--image-size", "32",
                         "--device", "cpu", "--allow-load"]  # fmt: skip
        return [replace(OURS, ms=8.0 if here else 10.0 + len(order) / 100), EAGER]

    monkeypatch.setattr(base, "check_out", lambda root, revision, folder: None)
    monkeypatch.setattr(base, "measure_in", measured)
    command = ["bench", "model", "--model", "DiT-S/2", "--batch", "2", "--rounds", "3", "--device", "cpu",
               "--allow-load", "--base", "abcdef"]  # fmt: skip
    assert main(command) == 0
    assert order == [False, True] * base.TURNS
    out = capsys.readouterr().out
    assert re.search(r"auto +8\.000 +1\.25\d +0\.00\d", out) and re.search(r"eager +20\.000 +1\.000", out)
    slower = base.ratios([([OURS], [replace(OURS, ms=ms)]) for ms in (12.0, 12.1, 12.2)])
    assert base.report("abc", slower, 0.05) == 1
    noisy = base.ratios([([OURS], [replace(OURS, ms=ms)]) for ms in (8.0, 12.1, 14.0)])
    assert base.report("abc", noisy, 0.05) == 0
    assert base.ratios([([OURS], []), ([OURS], [OURS])]) == []  # not in every turn


def test_base_needs_a_commit(capsys, tmp_path):
    with pytest.raises(ValueError, match="`--base` must be a commit, got 'no-such-commit'"):
        base.check_out(ROOT, "no-such-commit", tmp_path / "base")


def test_another_commit_is_asked_for_the_same_rows():
    parser = argparse.ArgumentParser()
    runner.add_arguments(parser)
    words = ["ops", "train", "--op", "adaln", "--op", "attention", "--dtype", "float32", "--backend", "auto, compiled",
             "--steps", "3"]  # fmt: skip
    told = parser.parse_args(words)
    again = base.forwarded(told, runner.options_of(told))
    assert runner.options_of(parser.parse_args(again)) == runner.options_of(told)


def test_readme_tables_are_made_from_results(tmp_path):
    file = write(tmp_path / "r.json", EAGER, OURS, replace(OURS, name="DiT-B/2", loaded=True))
    text = f"before\n<!-- benchmarks {file.name} model -->\nold\n<!-- end -->\nafter"
    made = readme.current(text, tmp_path)
    assert made.startswith("before\n<!--") and made.endswith("<!-- end -->\nafter") and "old" not in made
    assert "| | auto | eager |\n|---|---:|---:|\n" in made
    assert "| DiT-S/2, N=2, float32, forward | 10 ms | 20 ms (2.00x) |" in made
    assert "| DiT-B/2, N=2, float32, forward | 10 ms† |  |" in made and "†: other processes" in made
    assert "a CPU, 2 threads (avx2), torch 2, 2026-01-02, commit 012345678" in made
    assert readme.current(made, tmp_path) == made
    for name, kind in (("none.json", "model"), (file.name, "train")):
        with pytest.raises(ValueError, match="readme: "):
            readme.current(f"<!-- benchmarks {name} {kind} -->\n<!-- end -->", tmp_path)


def test_readme_is_current():
    text = (ROOT / "README.md").read_text()
    assert readme.current(text) == text, "run: python -m benchmarks readme"


def test_parts_of_a_gpu_run_are_one_file(tmp_path):
    write(tmp_path / "sample.json", OURS, absent={"a": "x"})
    write(tmp_path / "train.json", EAGER, absent={"b": "y"})
    end_to_end.merge(tmp_path, tmp_path / "whole.json")
    whole = read(tmp_path / "whole.json")
    assert whole.rows == [OURS, EAGER] and whole.absent == {"a": "x", "b": "y"}
    end_to_end.merge(tmp_path, tmp_path / "named.json", "c0ffee")
    assert read(tmp_path / "named.json").environment == {**ABOUT, "commit": "c0ffee"}
    end_to_end.merge(tmp_path / "empty", tmp_path / "none.json")
    assert not (tmp_path / "none.json").exists()


def test_a_part_that_hangs_is_stopped_and_one_that_fails_says_so(monkeypatch, tmp_path):
    write(tmp_path / "sample.json", OURS)
    monkeypatch.setattr(end_to_end.sys, "executable", "true")  # ends at once
    assert end_to_end.run_part("sample", 1, tmp_path, tmp_path / "t.json").startswith("sample: done")
    monkeypatch.setattr(end_to_end.sys, "executable", "false")
    assert "ended with 1" in end_to_end.run_part("sample", 1, tmp_path, tmp_path / "t.json")
    (tmp_path / "hang").write_text("#!/bin/sh\nsleep 60\n")
    (tmp_path / "hang").chmod(0o755)
    monkeypatch.setattr(end_to_end.sys, "executable", str(tmp_path / "hang"))
    assert "out of time" in end_to_end.run_part("sample", 0.001, tmp_path, tmp_path / "t.json")
    assert (tmp_path / "t.json").exists()


@pytest.mark.parametrize("device,parts", [("cuda", end_to_end.ON_GPU), ("cpu", end_to_end.ON_CPU)])
def test_the_parts_of_a_run_can_be_run(device, parts):
    for _, plan in parts.values():
        for options in plan:
            assert isinstance(options, Options) and {*options.kinds} <= runner.KINDS.keys()
            assert options.device == device and options.dtypes and {*options.dtypes} <= {*runner.DTYPES}
            assert all(parse_model(name) for name in options.models)
            known = {*model.PEERS, *train.PEERS, *sample.PEERS, "none"}
            assert {*options.peers} <= known and {*options.backends} <= {*train.OWN}


@pytest.mark.parametrize("name", readme.PLOTS)
def test_plots_are_current(name):
    result, *what = readme.PLOTS[name]
    made = readme.plot(readme.RESULTS / result, *what)
    assert (readme.ROOT / "docs" / name).read_text() == made, "run: python -m benchmarks readme"
    assert f"docs/{name}" in (readme.ROOT / "README.md").read_text()
    ElementTree.fromstring(made)
