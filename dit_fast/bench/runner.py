# SPDX-License-Identifier: Apache-2.0
"""One run: look whether the machine is idle, measure its ceilings, then each kind's rows, printed and kept as they
come."""

import argparse
import importlib
import shlex
import sys
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from dit_fast.env import quiet_profiler
from dit_fast.ops import NAMES

from . import ceilings
from .environment import environment
from .load import refuse_if_busy
from .recipe import parse_model
from .schema import Result, Row
from .session import Options, Session

KINDS = {
    "ops": "dit_fast.bench.ops",
    "model": "dit_fast.bench.model",
    "train": "dit_fast.bench.train",
    "sample": "dit_fast.bench.sample",
    "memory": "dit_fast.bench.memory",
    "growth": "dit_fast.bench.growth",
    "unets": "dit_fast.bench.unets",
}
"""Each a module with `rows(session)`."""

DTYPES = ("float32", "bfloat16", "float16")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"what to measure: {', '.join(KINDS)} (default: ops)")
    parser.add_argument("--op", action="append", choices=NAMES, help="only this op (may be repeated, as all of these)")
    parser.add_argument("--model", action="append", help="a model, as DiT-S/2 or DiT-S/2:depth=3 (default: DiT-S/2)")
    parser.add_argument("--batch", type=int, action="append", help="images")
    parser.add_argument("--dtype", action="append", choices=DTYPES, help="default: float32 and bfloat16")
    parser.add_argument("--backend", action="append", help="only this backend of ours")
    parser.add_argument("--peer", action="append", help="only this peer; none: only eager, the measure")
    parser.add_argument("--direction", action="append", choices=["forward", "forward+backward", "step"],
                        help="of `model` and of `memory`")  # fmt: skip
    parser.add_argument("--device", choices=["cpu", "cuda"], help="default: cuda where there is one")
    parser.add_argument("--image-size", type=int, default=32, help="side of the latent (default 32: 256 pixels)")
    parser.add_argument("--steps", type=int, help="steps of sampling to time")
    parser.add_argument("--rounds", type=int, help="timed calls of each")
    parser.add_argument("--minutes", type=float, help="begin no case after this many")
    parser.add_argument("--allow-load", action="store_true", help="time on a busy machine; its rows are marked")
    parser.add_argument("--json", type=Path, help="write the result, anew after every row")
    parser.add_argument("--html", type=Path, help="write the result as a page")
    parser.add_argument("--compare", type=Path, nargs=2, metavar=("A", "B"), help="what changed between two results;"
                        " exits with 1 on a regression")  # fmt: skip
    parser.add_argument("--threshold", type=float, default=0.05, help="of --compare: slower by this share (0.05)")
    parser.add_argument("--base", metavar="REV", help="the same rows on another commit, alternating")


def options_of(arguments: argparse.Namespace) -> Options:
    """Checked options.

    Raises:
        ValueError: a kind, a model or a number that cannot be.
    """
    for kind in arguments.kinds:
        if kind not in KINDS:
            raise ValueError(f"bench: KIND must be one of {', '.join(KINDS)}, got {kind!r}")
    for model in arguments.model or ():
        parse_model(model)
    for name in ("rounds", "steps", "image_size"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise ValueError(f"bench: `--{name.replace('_', '-')}` must be at least 1, got {value}")
    if any(batch < 1 for batch in arguments.batch or ()):
        raise ValueError(f"bench: `--batch` must be at least 1, got {min(arguments.batch)}")
    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("bench: `--device` must be cpu: PyTorch sees no GPU, got cuda")
    return Options(
        kinds=tuple(arguments.kinds) or ("ops",), ops=tuple(arguments.op or ()), models=tuple(arguments.model or ()),
        batches=tuple(arguments.batch or ()), dtypes=tuple(arguments.dtype or ()),
        backends=tuple(arguments.backend or ()), peers=tuple(arguments.peer or ()),
        directions=tuple(arguments.direction or ()), device=device, rounds=arguments.rounds,
        image_size=arguments.image_size, steps=arguments.steps, minutes=arguments.minutes,
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    """The command. 0 done, 1 something of ours was wrong or slower than before, 2 bad input or a busy machine."""
    if arguments.compare:
        from .compare import print_comparison

        before, after = arguments.compare
        return print_comparison(before, after, arguments.threshold)
    options = options_of(arguments)
    if arguments.base:
        from .base import run_base

        return run_base(arguments, options)
    result, refused = measure([options], arguments.allow_load, arguments.json)
    if arguments.html:
        importlib.import_module("dit_fast.bench.page").write(result, arguments.html)
    for what in refused:
        print(f"{what}: {result.absent[what]}", file=sys.stderr)
    return 1 if refused or not result.rows else 0


def measure(
    plan: Sequence[Options], allow_load: bool = False, json: Path | None = None
) -> tuple[Result, list[str]]:
    """A run of one set of options after another, on one device, printed as it goes; the answer is its result, and what
    was refused.

    Raises:
        ValueError: the machine is busy, and that was not allowed.
    """
    quiet_profiler()
    session = Session(plan[0], ceilings.Ceilings(0.0))
    load = refuse_if_busy(session.device, session.monitor, allow_load)
    about = environment(session.device)
    names = dict.fromkeys(dtype for options in plan for dtype in options.dtypes or ("float32", "bfloat16"))
    session.ceilings = ceilings.measure(session.device, [getattr(torch, name) for name in names])
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    result = Result(now, command_line(), about, session.ceilings.as_dict(), load, session.absent)
    print(", ".join(f"{k} {v}" for k, v in about.items()))
    rates = ", ".join(f"{name} {rate:.3g} TFLOP/s" for name, rate in session.ceilings.matmul.items())
    print(f"ceilings: copy {session.ceilings.copy:.1f} GB/s, bytes read and written; matrix products {rates}")
    print(HEAD)
    for row in all_rows(session, plan):
        result.rows.append(row)
        print(text(row), flush=True)
        if json:
            result.write(json)
    for what, reason in result.absent.items():
        print(f"absent: {what}: {reason}")
    if json:
        result.write(json)
    return result, session.refused


def all_rows(session: Session, plan: Sequence[Options]) -> Iterator[Row]:
    for options in plan:
        session.options = options
        for kind in options.kinds:
            yield from importlib.import_module(KINDS[kind]).rows(session)


def command_line() -> str:
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


HEAD = (
    f"{'what':22s}{'case':26s}{'dtype':10s}{'direction':18s}{'L2':6s}{'by':22s}{'ms':>10s}{'spread':>8s}{'GB/s':>8s}"
    f"{'TFLOP/s':>9s}{'of limit':>10s}{'MiB':>9s}{'launches':>9s}{'error':>9s}{'x eager':>9s}"
)


def text(row: Row) -> str:
    def cell(value: Any, form: str, width: int) -> str:
        return f"{'' if value is None else format(value, form):>{width}s}"

    mebibytes = None if row.peak_bytes is None else row.peak_bytes / 2**20
    return (
        f"{row.name:21s} {row.case:25s} {row.dtype:10s}{row.direction:18s}{row.l2:6s}{row.backend:21s} "
        + cell(row.ms, ".3f", 10) + cell(row.spread, ".0%", 8) + cell(row.gbytes_per_s, ".1f", 8)
        + cell(row.tflops, ".3g", 9) + cell(row.share, ".0%", 10) + cell(mebibytes, ".1f", 9)
        + cell(row.launches, "d", 9) + cell(row.error, ".1e", 9) + cell(row.ratio_to_eager, ".2f", 9)
        + ("  LOADED" if row.loaded else "")
    )  # fmt: skip
