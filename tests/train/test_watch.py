# SPDX-License-Identifier: Apache-2.0
"""What watchers leave behind: a log without torn lines, pictures, boards, a summary."""

import errno
import json
import os
import re
import sys
import time
import types
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dit_fast.data import TensorSource
from dit_fast.pictures import grid
from dit_fast.train import Trainer, files, metrics
from dit_fast.train.boards import TensorBoard, Wandb
from dit_fast.train.config import TrainConfig
from dit_fast.train.configfile import load_config
from dit_fast.train.files import JsonLog, SampleFiles, read_log
from dit_fast.train.progress_bar import ProgressBar
from dit_fast.train.summary import Summary
from dit_fast.train.watch import Record, RunInfo, Watcher, scalars, watchers_for


def info(out: Path, start: int = 0, **fields) -> RunInfo:
    config = TrainConfig(out=out, steps=400, data="digits", **fields)
    return RunInfo(config, 1234567, 118_600_000_000, 2, "NVIDIA H200", start, out)


def record(step: int, **fields) -> Record:
    return replace(Record(step, 1 / step, 0.5, 1e-4, 8 * step, 100.0, 2.0 * step, 3.0, 0.25, 2**30), **fields)


def images(n: int = 5, h: int = 3, w: int = 4, c: int = 1) -> torch.Tensor:
    return torch.arange(n * h * w * c).view(n, h, w, c).remainder(200).to(torch.uint8)


def a_run(watchers, out: Path, start: int = 0, reason: str = "done", steps=(100, 200)) -> None:
    run = info(out, start)
    for watcher in watchers:
        watcher.start(run)
    for step in steps:
        for watcher in watchers:
            watcher.record(record(step))
            watcher.samples(step, images(), torch.arange(5))
            saved = (None, 1.5, "full") if step == 200 else (out / f"step-{step}", 1.5, None)
            watcher.checkpoint(step, *saved)
    for watcher in watchers:
        watcher.end(reason, run)


def test_the_log_has_a_line_an_event_and_the_configuration_is_beside_it(tmp_path):
    a_run([JsonLog()], tmp_path)
    log = read_log(tmp_path / "log.jsonl")
    assert [e["event"] for e in log] == ["start", *["record", "samples", "checkpoint"] * 2, "end"]
    assert [e["step"] for e in log] == [0, 100, 100, 100, 200, 200, 200, 200]
    assert log[0]["macs_per_image"] == 118_600_000_000 and log[0]["config"]["steps"] == 400
    assert log[1] == {"event": "record", **vars(record(100))}
    assert log[3]["path"] == "step-100" and (log[6]["path"], log[6]["error"]) == (None, "full")
    assert log[-1]["reason"] == "done"
    assert load_config(None, tmp_path / "config.yaml") == info(tmp_path).config


def test_a_resumed_log_drops_what_comes_again_and_a_torn_line(tmp_path):
    path = tmp_path / "log.jsonl"
    a_run([JsonLog()], tmp_path, steps=(100, 200))
    whole = path.read_bytes()
    unended, later = b'{"event": "record", "step": 200}', b'{"event": "record", "step": 300}\n'
    for torn in (b"", later, unended[:-9], unended, later[:-2], b"\x00" * 9, b"[3]\n", later + later[:9]):
        path.write_bytes(whole.partition(b'{"event": "end"')[0] + torn)
        log = JsonLog()
        log.start(info(tmp_path, 200))
        steps = [(e["event"], e["step"]) for e in map(json.loads, path.read_text().splitlines())]
        kept = [("start", 0)] + [(event, step) for step in (100, 200) for event in ("record", "samples", "checkpoint")]
        assert steps == [*kept, ("start", 200)]
        log.end("done", info(tmp_path, 200))
    path.write_bytes(whole[:400])  # torn in the first line, later than the step that it goes on from
    JsonLog().start(info(tmp_path, 200))
    assert [e["step"] for e in map(json.loads, path.read_text().splitlines())] == [200]
    for _ in range(2):
        JsonLog().start(info(tmp_path))
        assert [e["step"] for e in map(json.loads, path.read_text().splitlines())] == [0]


def test_a_full_disk_costs_lines_but_tears_none(tmp_path, monkeypatch, caplog):
    log, write, room = JsonLog(), os.write, [True]
    log.start(info(tmp_path))

    def limited(file: int, data: bytes) -> int:
        if room[0]:
            return write(file, data)
        if room[0] is None:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(file, data[:7])

    monkeypatch.setattr(files.os, "write", limited)
    for step, room[0] in ((1, True), (2, False), (3, None), (4, True)):
        log.record(record(step))
    assert [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()] == [0, 1, 4]
    assert len(caplog.records) == 1 and "7 of" in caplog.text and "training goes on" in caplog.text


def test_numbers_that_json_lacks_are_text(tmp_path):
    log = JsonLog()
    log.start(info(tmp_path))
    log.record(record(1, grad_norm=float("inf"), loss=float("nan")))
    line = (tmp_path / "log.jsonl").read_text().splitlines()[-1]
    entry = json.loads(line, parse_constant=lambda name: pytest.fail(name))
    assert (entry["grad_norm"], entry["loss"]) == ("inf", "nan")


def test_a_grid_has_every_image_in_its_place():
    drawn = images()
    picture = grid(drawn, 3)
    assert picture.shape == (7, 14, 1)
    for i in range(5):
        y, x = i // 3 * 4, i % 3 * 5
        assert torch.equal(picture[y : y + 3, x : x + 4], drawn[i])
    assert (picture[4:, 10:] == 255).all() and (picture[3] == 255).all() and (picture[:, 4] == 255).all()
    assert grid(images(16, 4, 4)).shape == (19, 19, 1) and grid(images(1)).shape == (3, 4, 1)


@pytest.mark.parametrize("channels,mode", [(1, "L"), (3, "RGB")])
def test_drawings_are_pictures(tmp_path, channels, mode):
    files_ = SampleFiles()
    files_.start(info(tmp_path))
    files_.samples(100, images(c=channels), None)
    (path,) = (tmp_path / "samples").iterdir()
    picture = Image.open(path)
    assert path.name == "step-00000100.png" and picture.mode == mode
    assert np.array_equal(np.asarray(picture), grid(images(c=channels)).squeeze(-1).numpy())


def test_the_bar_is_lines_where_there_is_no_terminal(capsys, monkeypatch):
    bar = ProgressBar()
    a_run([bar], Path("run"))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "training: step 100 of 400, loss 0.0100, images/s 100, MFU 25.0%" and len(lines) == 2
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    bar.start(info(Path("run"), 100))
    bar.record(record(200, mfu=None))
    assert (bar.bar.n, bar.bar.initial, bar.bar.total) == (200, 100, 400)
    bar.end("done", info(Path("run")))
    assert "loss=0.0050, images/s=100" in capsys.readouterr().err and "MFU" not in bar.bar.postfix


def test_tensorboard_holds_the_numbers_and_pictures(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    a_run([TensorBoard()], tmp_path)
    a_run([TensorBoard()], tmp_path, start=100, steps=(200, 300))  # 200 again
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert set(events.Tags()["scalars"]) == set(scalars(record(1)))
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [
        (step, pytest.approx(1 / step)) for step in (100, 200, 300)
    ]
    assert [e.step for e in events.Images("samples")] == [100, 200, 300]


def fake_wandb(monkeypatch, calls: list) -> None:
    class Run:
        id = "abc123"

        def __getattr__(self, name):
            return lambda *arguments, **named: calls.append((name, *arguments, named))

    module = types.ModuleType("wandb")
    module.__spec__ = types.SimpleNamespace()
    module.init = lambda **named: calls.append(("init", named)) or Run()
    module.Image = lambda pixels: ("image", pixels.shape)
    monkeypatch.setitem(sys.modules, "wandb", module)


def test_wandb_gets_the_numbers_and_knows_a_resumed_run_again(tmp_path, monkeypatch):
    calls: list = []
    fake_wandb(monkeypatch, calls)
    a_run([Wandb("project")], tmp_path)
    a_run([Wandb("project")], tmp_path, start=100, reason="FloatingPointError: nan", steps=(200,))
    begun = [call[1] for call in calls if call[0] == "init"]
    assert [(b["project"], b.get("id"), b["config"]["steps"]) for b in begun] == [
        ("project", None, 400), ("project", "abc123", 400)
    ]  # fmt: skip
    logged = [call[1] for call in calls if call[0] == "log"]
    assert logged[0] == {**scalars(record(100)), "step": 100} and logged[1]["samples"] == ("image", (11, 9))
    assert ("define_metric", "*", {"step_metric": "step"}) in calls
    assert [call[1] for call in calls if call[0] == "finish"] == [{"exit_code": 0}, {"exit_code": 1}]


def test_who_watches_is_asked_for_and_what_is_missing_is_said(monkeypatch, tmp_path):
    def names(**fields):
        return [type(watcher).__name__ for watcher in watchers_for(TrainConfig(out=tmp_path / "run", **fields))]

    assert names() == ["JsonLog", "SampleFiles", "TensorBoard", "ProgressBar", "Summary"]
    assert names(tensorboard=False, progress=False) == ["JsonLog", "SampleFiles", "Summary"]
    with pytest.raises(ModuleNotFoundError, match="`wandb` needs wandb: pip install wandb"):
        names(wandb="project")
    fake_wandb(monkeypatch, [])
    assert "Wandb" in names(wandb="project")
    missing = lambda name: None  # noqa: E731
    monkeypatch.setattr("dit_fast.train.watch.find_spec", missing)
    monkeypatch.setattr("dit_fast.train.boards.find_spec", missing)
    assert "TensorBoard" not in names()
    with pytest.raises(ModuleNotFoundError, match=r"`tensorboard` needs tensorboard: pip install 'dit_fast\[train\]'"):
        names(tensorboard=True)
    assert not (tmp_path / "run").exists()


def test_the_summary_covers_the_whole_run(tmp_path):
    a_run([JsonLog(), Summary()], tmp_path, reason="stopped")
    a_run([JsonLog(), Summary()], tmp_path, start=200, steps=(300, 400))
    text = (tmp_path / "summary.md").read_text()
    for part in (
        "| one image | 118.6 Gflops as the paper counts (multiply-adds), twice as many FLOPs |", "| ended | done |",
        "| steps | 400 of 400, 3,200 images |", "| time | 0:13:20 |", "| loss | 0.0025 over the last 1 records |",
        "| speed | 100 images/s, 3 TFLOP/s, MFU 25.0% |", "| peak allocated GPU memory | 1.00 GiB |",
        "| hardware | 2 x NVIDIA H200 |", "![samples](samples/step-00000400.png)", "| 200 | 1.5 | full |",
        "![loss, images a second, gradient norm and learning rate](summary.png)",
    ):  # fmt: skip
        assert part in text, text
    assert Image.open(tmp_path / "summary.png").size == (1100, 660)
    assert not list(tmp_path.glob("*.partial"))


def test_a_summary_without_matplotlib_or_records_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr("dit_fast.train.summary.find_spec", lambda name: None)
    a_run([JsonLog(), Summary()], tmp_path, reason="a | b\nc")
    text = (tmp_path / "summary.md").read_text()
    assert r"| ended | a \| b c |" in text and "No curves: they need matplotlib (pip install 'dit_fast[train]')" in text
    assert not (tmp_path / "summary.png").exists()
    a_run([JsonLog(), Summary()], tmp_path, steps=())
    assert "| ended | done |" in (tmp_path / "summary.md").read_text()


def test_throughput_by_the_papers_count():
    done = metrics.throughput(images=300, seconds=2.0, macs=118_640_000_000, peak=989.5, ranks=2)
    assert done.images_per_second == 150
    assert done.tflops == pytest.approx(150 * 6 * 0.11864) and done.mfu == pytest.approx(done.tflops / (2 * 989.5))
    assert metrics.throughput(300, 2.0, 10, None, 2).mfu is None


@pytest.mark.parametrize(
    "name,peak",
    [
        ("NVIDIA H100 80GB HBM3", 989.5), ("NVIDIA H100 PCIe", 756.0), ("NVIDIA H100 NVL", 835.5),
        ("NVIDIA H200", 989.5), ("NVIDIA H20", 148.0), ("NVIDIA A100-SXM4-80GB", 312.0), ("NVIDIA L4", 121.0),
        ("NVIDIA L40S", 362.05), ("NVIDIA A10G", None), ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("Tesla V100-SXM2-16GB", None),
    ],
)  # fmt: skip
def test_the_peak_is_the_data_sheets_or_not_known(name, peak, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert metrics.peak_tflops(TrainConfig(), "cuda") == peak
    assert metrics.peak_tflops(TrainConfig(peak_tflops=70), "cuda") == 70
    assert metrics.peak_tflops(TrainConfig(precision="float32"), "cuda") is None
    assert metrics.peak_tflops(TrainConfig(), "cpu") is None


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_on_a_cpu_is_what_is_resident():
    bytearray(b"x") * (64 << 20)  # gone again, and remembered
    (most,) = re.findall(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    assert metrics.memory_bytes("cpu") == pytest.approx(int(most) * 1024, rel=0.02)
    assert metrics.memory_name("cpu") == "peak resident memory"


def test_drawings_take_no_part_in_rates_and_may_fail(tmp_path, caplog):
    class Kept(Watcher):
        def __init__(self):
            self.rates, self.drawn = [], []

        def record(self, record):
            assert record.mfu == pytest.approx(record.tflops / 0.5) and record.tflops > 0
            self.rates.append(record.images_per_second)

        def samples(self, step, images, labels):
            self.drawn.append((step, images.shape, images.dtype, labels.tolist()))

    def draw(model, labels, config):
        if len(kept.rates) == 1:
            raise RuntimeError("no memory")
        time.sleep(1.0)
        return torch.zeros(len(labels), 1, 4, 4)

    kept = Kept()
    fields = dict(steps=4, batch_size=4, log_every=1, sample_every=1, sample_count=4, save_every=0, workers=0)
    sizes = {"hidden_size": 32, "depth": 1, "num_heads": 1}
    config = TrainConfig(out=tmp_path, model="DiT", model_args=sizes, precision="float32", peak_tflops=0.5, **fields)
    result = Trainer(config, TensorSource(torch.zeros(4, 1, 4, 4), torch.tensor([0, 0, 1, 1])), [kept], draw=draw).run()
    assert kept.drawn == [(step, (4, 4, 4, 1), torch.uint8, [0, 0, 1, 1]) for step in (2, 3, 4)]
    assert "no images could be drawn after step 1, training goes on" in caplog.text and result.steps == 4
    assert kept.rates[-1] > 4 / 1.0 and result.seconds > 3.0
