# SPDX-License-Identifier: Apache-2.0
"""What a run leaves in its folder while it runs.

    out/config.yaml                  every field, as `load_config` reads it
    out/log.jsonl                    a line for each start, record, checkpoint, drawing and end
    out/samples/step-00010000.png    images drawn with the averaged weights
"""

import json
import logging
import math
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from dit_fast.files import whole_or_not
from dit_fast.pictures import grid

from .configfile import save_config
from .watch import Record, RunInfo, Watcher

LOG = logging.getLogger("dit_fast")
LOG_FILE = "log.jsonl"


class JsonLog(Watcher):
    """`log.jsonl`, one JSON object a line: "event" is its kind and "step" the updates made by then.

    A run that goes on from step s drops the lines of later steps, which will come again, and a line that a killed
    process left torn. A line is written whole or not at all: one that does not fit on the disk is given up, the run
    and the log go on. A number that is not finite is the text "nan", "inf" or "-inf", for JSON has no such numbers.
    """

    def __init__(self) -> None:
        self.file = -1
        self.step = 0
        self.complained = False

    def start(self, info: RunInfo) -> None:
        self.out = info.out
        info.out.mkdir(parents=True, exist_ok=True)
        save_config(info.config, info.out / "config.yaml")
        path = info.out / LOG_FILE
        drop_later(path, info.start_step)
        self.file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        self.step = info.start_step
        entries = {**asdict(info), "out": str(info.out)}
        self._write("start", **entries)

    def record(self, record: Record) -> None:
        self.step = record.step
        self._write("record", **asdict(record))

    def samples(self, step: int, images: Tensor, labels: Tensor | None) -> None:
        self._write("samples", step=step, file=str(sample_path(Path(), step)), count=len(images))

    def checkpoint(self, step: int, path: Path | None, seconds: float, error: str | None) -> None:
        name = None if path is None else os.path.relpath(path, self.out)
        self._write("checkpoint", step=step, path=name, seconds=seconds, error=error)

    def end(self, reason: str, info: RunInfo) -> None:
        self._write("end", reason=reason)
        os.close(self.file)
        self.file = -1

    def _write(self, event: str, **entries: Any) -> None:
        line = json.dumps(plain({"event": event, "step": self.step, **entries}), allow_nan=False).encode() + b"\n"
        before = os.fstat(self.file).st_size
        try:
            written = os.write(self.file, line)
            problem = None if written == len(line) else f"{written} of {len(line)} bytes fit on the disk"
        except OSError as error:
            problem = str(error)
        if problem is not None:
            os.ftruncate(self.file, before)
            if not self.complained:
                LOG.error("train: a line could not be added to %s, training goes on: %s", LOG_FILE, problem)
            self.complained = True


class SampleFiles(Watcher):
    """Each drawing as one picture."""

    def start(self, info: RunInfo) -> None:
        self.out = info.out

    def samples(self, step: int, images: Tensor, labels: Tensor | None) -> None:
        from PIL import Image

        pixels = grid(images).squeeze(-1).numpy()
        with whole_or_not(sample_path(self.out, step)) as partial:
            Image.fromarray(pixels).save(partial, format="PNG")


def sample_path(out: Path, step: int) -> Path:
    return out / "samples" / f"step-{step:08d}.png"


def plain(value: Any) -> Any:
    """What JSON can say."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def drop_later(path: Path, step: int) -> None:
    """Cut the log before its first line of a later step or that is not whole; before its first line where step is 0."""
    if not path.exists():
        return
    end = 0
    with path.open("rb") as file:
        for line in file:
            entry = whole_line(line)
            if step == 0 or entry is None or entry["step"] > step:
                break
            end += len(line)
    os.truncate(path, end)


def whole_line(line: bytes) -> dict[str, Any] | None:
    """The object of one line; None if it is torn."""
    try:
        entry = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
    return entry if isinstance(entry, dict) and isinstance(entry.get("step"), int) else None


def read_log(path: str | Path) -> list[dict[str, Any]]:
    """All whole lines of a log."""
    with Path(path).open("rb") as file:
        return [entry for line in file if (entry := whole_line(line)) is not None]
