# SPDX-License-Identifier: Apache-2.0
"""What a timing is made of: clocks that take turns, the watch for load, ceilings, and the file of a run."""

import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from multiprocessing import Pipe

import pytest
import torch

from dit_fast.bench import load
from dit_fast.bench.ceilings import Ceilings, matmul_rate
from dit_fast.bench.child import serve
from dit_fast.bench.memory_use import peak_of_call
from dit_fast.bench.schema import Result, Row, read, summary
from dit_fast.bench.session import Options, Session
from dit_fast.bench.timing import time_alternating

ROW = Row("model", "DiT-S/2", "N=2", {"batch": 2}, "float32", "forward", "auto", True, ms=2.0, spread=0.1, rounds=9)


class Elsewhere:
    """A step with a clock of its own."""

    def __init__(self, calls):
        self.calls = calls

    def seconds(self):
        self.calls.append("elsewhere")
        return 7.0


def test_functions_take_turns_and_one_may_time_itself():
    calls = []
    steps = {"a": lambda: calls.append("a"), "elsewhere": Elsewhere(calls)}
    times = time_alternating(steps, 3, "cpu", warm_up=2)
    assert calls[:4] == ["a", "a", "elsewhere", "elsewhere"]
    assert [set(calls[i : i + 2]) for i in (4, 6, 8)] == [{"a", "elsewhere"}] * 3
    assert times["elsewhere"] == [7.0] * 3 and all(0 <= t < 1 for t in times["a"]) and len(times["a"]) == 3


def test_all_pause_and_each_follows_every_other_about_as_often(monkeypatch):
    calls = []
    monkeypatch.setattr("dit_fast.bench.timing.time.sleep", calls.append)
    time_alternating({name: lambda n=name: calls.append(n) for name in "abcd"}, 600, "cpu", warm_up=0, pause=0.5)
    assert calls[::2] == [0.5] * 2400
    names = calls[1::2]
    assert all(sorted(names[i : i + 4]) == [*"abcd"] for i in range(0, 2400, 4))
    followed = Counter(pairwise(names))
    assert all(100 < followed[a, b] < 240 for a in "abcd" for b in "abcd" if a != b)  # of 2399 pairs, 12 kinds or more
    time_alternating({name: lambda n=name: calls.append(n) for name in "abcd"}, 600, "cpu", warm_up=0, pause=0.5)
    assert calls[4801::2] == names


def test_summary_is_the_median_and_the_middle_half():
    timing = summary([1.0, 2.0, 3.0, 4.0, 100.0], loaded=True, others_cores=0.5)
    assert timing.ms == 3000 and timing.spread == pytest.approx(2 / 3) and timing.rounds == 5
    assert timing.loaded and timing.others_cores == 0.5


def proc(folder, busy, own):
    """A /proc whose cores 0 .. have been busy, and process 1 has run, so many hundredths of a second."""
    (folder / "1").mkdir(exist_ok=True)
    cores = "".join(f"cpu{i} {busy} 0 0 9999 5 0 0 0 0 0\n" for i in range(512))
    (folder / "stat").write_text(f"cpu 1 1 1 1 1 1 1 1 1 1\n{cores}intr 5\n")
    (folder / "1" / "stat").write_text(f"1 (a name) with) R {' '.join('0' * 10)} {own} 1 2 3 20 0\n")
    return folder


def test_others_time_is_the_cores_less_our_own(tmp_path, monkeypatch):
    monkeypatch.setattr(load.os, "sched_getaffinity", lambda pid: {0, 3})
    assert load.busy_seconds(proc(tmp_path, 50, 10)) == pytest.approx(2 * 50 / load.TICK)
    assert load.own_seconds([1, 12345], tmp_path) == pytest.approx(16 / load.TICK)  # 12345 has ended
    assert load.busy_seconds(tmp_path / "none") is None
    clock = iter([(0.0, 10.0, 4.0), (2.0, 13.0, 6.0)])  # in 2 s the cores worked 3 s, we 2 s
    monitor = load.LoadMonitor()
    monkeypatch.setattr(monitor, "_now", lambda: next(clock))
    monitor.start()
    assert monitor.stop() == pytest.approx(0.5)


def test_a_busy_neighbour_is_seen_and_our_own_work_is_ours():
    neighbour = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        time.sleep(0.2)
        assert load.LoadMonitor().sample(0.5) > load.LIMIT
    finally:
        neighbour.kill()
        neighbour.wait()
    before, end = load.own_seconds([load.os.getpid()]), time.process_time() + 0.2
    while time.process_time() < end:
        pass
    assert load.own_seconds([load.os.getpid()]) - before >= 0.15


def test_a_busy_machine_is_refused_unless_allowed(monkeypatch):
    monitor = load.LoadMonitor()
    monkeypatch.setattr(monitor, "sample", lambda: 1.5)
    with pytest.raises(ValueError, match="got other processes using 1.50 cores; wait, or `--allow-load`"):
        load.refuse_if_busy("cpu", monitor, allowed=False)
    assert load.refuse_if_busy("cpu", monitor, allowed=True)["others_cores"] == 1.5
    monkeypatch.setattr(load, "gpu_utilisation", lambda: 80.0)
    monkeypatch.setattr(load.time, "sleep", lambda seconds: None)
    with pytest.raises(ValueError, match="80% of the GPU"):
        load.refuse_if_busy("cuda", monitor, allowed=False)
    monkeypatch.setattr(load, "gpu_utilisation", lambda: 0.0)
    assert load.refuse_if_busy("cuda", monitor, allowed=False)["gpu_percent"] == 0.0  # cores only launch
    monkeypatch.setattr(monitor, "sample", lambda: None)
    assert load.refuse_if_busy("cpu", monitor, allowed=False)["others_cores"] is None


def test_rows_timed_under_load_are_marked(monkeypatch):
    session = Session(Options(), Ceilings(1.0))
    for cores, loaded in ((0.01, False), (0.9, True), (None, False)):
        monkeypatch.setattr(session.monitor, "stop", lambda cores=cores: cores)
        timing = session.time({"a": lambda: None}, 2)["a"]
        assert (timing.loaded, timing.others_cores) == (loaded, cores)


def test_a_share_is_of_the_ceiling_that_binds():
    ceilings = Ceilings(copy=100.0, matmul={"float32": 2.0})
    assert ceilings.share(1.0, "float32", moved=50e6) == (pytest.approx(0.5), "copy")
    assert ceilings.share(1.0, "float32", moved=50e6, flops=1.5e9) == (pytest.approx(0.75), "matmul")
    assert ceilings.share(1.0, "bfloat16", moved=0, flops=1.5e9) == (None, None)  # its rate was not measured
    emulated = Ceilings(copy=100.0, matmul={"float32": 2.0, "bfloat16": 0.01})
    assert emulated.share(1.0, "bfloat16", flops=1.5e9) == (pytest.approx(0.75), "matmul")


def test_the_rate_of_products_stops_where_a_product_takes_long(monkeypatch):
    sides = []
    monkeypatch.setattr("dit_fast.bench.ceilings.time_alternating",
                        lambda functions, *_: {"matmul": [sides.append(1) or 0.2]})  # fmt: skip
    assert matmul_rate("cpu", torch.float32) == pytest.approx(2 * 256**3 / 0.2 / 1e12) and len(sides) == 1


def test_peak_of_a_call_counts_what_lived_at_once():
    x = torch.randn(1 << 18)

    def step():
        y = x + 1
        z = y * 2
        del y
        return z + 1  # two of them at a time

    assert peak_of_call(step, "cpu")[0] == pytest.approx(2 * 4 * x.numel(), rel=0.01)


def test_a_result_comes_back_from_its_file(tmp_path):
    result = Result("2026-01-01T00:00:00+00:00", "dit-fast bench", {"device": "x"}, {"copy_gbytes_per_s": 1.0}, {},
                    {"model: openvino": "not installed"}, [ROW, replace(ROW, backend="eager", ours=False)])  # fmt: skip
    result.write(tmp_path / "deep" / "r.json")
    assert read(tmp_path / "deep" / "r.json") == result
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["r.json"]
    for text in ("[]", '{"schema": 0}', "{"):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(ValueError, match="must be a result"):
            read(tmp_path / "bad.json")


def answers(factory, *asked):
    """What a child that was made by `factory` says, here in a thread."""
    ours, theirs = Pipe()
    thread = threading.Thread(target=serve, args=(theirs, factory, {}, torch.get_num_threads(), "cpu"))
    thread.start()
    for what in asked:
        ours.send(what)
    thread.join(20)
    said = []
    while ours.poll():
        said.append(ours.recv())
    return said


def test_a_child_answers_and_says_why_it_failed():
    made, seconds, output, peak = answers(lambda: lambda: torch.ones(2), "seconds", "output", "peak", "stop")
    assert made == ("made", None) and 0 <= seconds[1] < 1 and output[1].tolist() == [1, 1] and isinstance(peak[1], int)
    ((kind, why),) = answers(lambda: 1 / 0)
    assert kind == "failed" and why.startswith("ZeroDivisionError: division by zero")
