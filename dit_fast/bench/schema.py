# SPDX-License-Identifier: Apache-2.0
"""What a benchmark leaves: rows, and the file of a run. `compare`, the page and the README's tables read these."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from statistics import median
from typing import Any

SCHEMA = 1


@dataclass(frozen=True)
class Timing:
    """Of one implementation, in one alternating set: milliseconds and how they scatter.

    Attributes:
        ms: median.
        spread: (75th - 25th percentile) / median.
        rounds: calls timed.
        loaded: other processes took enough of the machine meanwhile to move the figure (see `load`).
        others_cores: cores' worth of time that other processes took meanwhile; None where it cannot be known.
    """

    ms: float
    spread: float
    rounds: int
    loaded: bool = False
    others_cores: float | None = None


def summary(seconds: list[float], loaded: bool = False, others_cores: float | None = None) -> Timing:
    ordered, middle = sorted(seconds), median(seconds)
    spread = (ordered[3 * len(ordered) // 4] - ordered[len(ordered) // 4]) / middle
    return Timing(1e3 * middle, spread, len(seconds), loaded, others_cores)


@dataclass(frozen=True)
class Row:
    """One implementation of one case in one direction.

    Attributes:
        kind: "ops", "model", "train", "sample", "memory" or another of `runner.KINDS`.
        name: the op or the model.
        case: in words; `dims` are its sizes.
        dtype: of the tensors, or of autocast in `train`.
        direction: "forward", "backward" (alone), "forward+backward", or "step" of training or of sampling.
        l2: "cold" or "warm" for an op on a GPU, else "".
        backend: ours: the backend; else the peer's name.
        ours: whether this package's kernels ran.
        ms, spread, rounds, loaded, others_cores: see `Timing`; ms is None where only memory was measured.
        gbytes_per_s: least traffic of the case over the median.
        tflops: useful operations over the median, two a multiply-add, by the paper's count.
        share: of the ceiling that binds the case on this machine, `share_of`: "copy" or "matmul" (see `ceilings`).
        peak_bytes, memory_method: memory, and what exactly was measured.
        launches: GPU kernels of one call.
        error: relative distance from float64; `error_eager`: that of eager PyTorch in the same dtype.
        ratio_to_eager: eager's median over this one's; above 1 is faster.
        images_per_s: images of the batch over the median; of whole images in sampling.
        note: what a reader has to know: the attention backend that was pinned, what was extrapolated.
        repeat: the command that measures this row again.
    """

    kind: str
    name: str
    case: str
    dims: Mapping[str, int]
    dtype: str
    direction: str
    backend: str
    ours: bool
    l2: str = ""
    ms: float | None = None
    spread: float | None = None
    rounds: int = 0
    loaded: bool = False
    others_cores: float | None = None
    gbytes_per_s: float | None = None
    tflops: float | None = None
    share: float | None = None
    share_of: str | None = None
    peak_bytes: int | None = None
    memory_method: str = ""
    launches: int | None = None
    error: float | None = None
    error_eager: float | None = None
    ratio_to_eager: float | None = None
    images_per_s: float | None = None
    note: str = ""
    repeat: str = ""

    def key(self) -> tuple[str, ...]:
        """What makes two rows of two runs the same measurement."""
        return self.kind, self.name, self.case, self.dtype, self.direction, self.l2, self.backend


@dataclass
class Result:
    """One run.

    Attributes:
        ceilings: {"copy_gbytes_per_s": x, "matmul_tflops": {dtype: x}}, measured at its start.
        load: {"others_cores": x, "limit": x, "allowed": whether a busy machine was accepted}.
        absent: peers that did not run, "kind: peer": the reason.
    """

    date: str
    command: str
    environment: dict[str, str]
    ceilings: dict[str, Any]
    load: dict[str, Any]
    absent: dict[str, str] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)

    def write(self, path: Path) -> None:
        """Whole or not at all, so that a run that is cut off leaves the rows it had."""
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        partial.write_text(json.dumps({"schema": SCHEMA, **asdict(self)}, indent=1) + "\n")
        os.replace(partial, path)


def read(path: Path) -> Result:
    """A file of `Result.write`.

    Raises:
        ValueError: it is none, or of another schema.
    """
    try:
        found = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"bench: {path} must be a result in JSON, got {error}") from error
    schema = found.get("schema") if isinstance(found, dict) else None
    if schema != SCHEMA:
        raise ValueError(f"bench: {path} must be a result of schema {SCHEMA}, got schema {schema}")
    known = {f.name for f in fields(Row)}
    rows = [Row(**{k: v for k, v in row.items() if k in known}) for row in found["rows"]]
    return Result(**{f.name: found[f.name] for f in fields(Result) if f.name != "rows"}, rows=rows)
