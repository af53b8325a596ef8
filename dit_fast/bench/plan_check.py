# SPDX-License-Identifier: Apache-2.0
"""The planner's formulas beside a run: DDP over gloo with two processes on this machine, from one process's step.

Two processes of one thread each go through the same rounds: a training step of one while the other waits; of both at
once, nothing exchanged; of both under DDP; an all-reduce of few bytes and one of many, which tell what the link does.
From the second and the link the planner says what the third should take.
"""

import os
import sys
import tempfile
import traceback
from datetime import datetime, timezone
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from dit_fast.optim import AdamWEMA

from .environment import environment
from .load import LIMIT, LoadMonitor, is_loaded
from .plan_links import BUCKET, Link, ddp_seconds
from .recipe import Recipe
from .schema import Result, Row, summary
from .timing import HostClock, Step

WORLD = 2
MEASURED, PLANNED = "2 processes, DDP, measured", "2 processes, DDP, planned"
FEW, MANY = 1024, BUCKET
"""Bytes of the all-reduces that tell latency and bandwidth."""


def training_step(recipe: Recipe, wrap: bool) -> Step:
    """Forward, backward and update of a model, under DDP or alone."""
    model = recipe.model().train()
    net: nn.Module = DistributedDataParallel(model, gradient_as_bucket_view=True) if wrap else model
    optimizer = AdamWEMA([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    x, t, y = recipe.inputs()

    def step() -> None:
        net(x, t, y).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)

    return step


def _rounds(rank: int, recipe: Recipe, rounds: int) -> dict[str, list[float]]:
    """Seconds of everything that is timed, in this process."""
    alone, together = training_step(recipe, wrap=False), training_step(recipe, wrap=True)
    few, many = torch.zeros(FEW // 4), torch.zeros(MANY // 4)
    turns: dict[str, Step] = {
        "alone": alone if rank == 0 else lambda: None,
        "beside": alone, "ddp": together, "few": lambda: dist.all_reduce(few), "many": lambda: dist.all_reduce(many),
    }  # fmt: skip
    clock = HostClock("cpu")
    found: dict[str, list[float]] = {name: [] for name in turns}
    for _ in range(rounds + 1):  # the first is a warm-up
        for name, function in turns.items():
            dist.barrier()
            found[name].append(clock(function))
    return {name: values[1:] for name, values in found.items()}


def _worker(rank: int, folder: str, recipe: Recipe, rounds: int, results: Any) -> None:
    """Leaves by os._exit: gloo's destructor waits for a thread that may wait for Python's lock (torch 2.13)."""
    code = 1
    try:
        torch.set_num_threads(1)
        store = dist.FileStore(f"{folder}/store", WORLD)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=WORLD)
        results.put(_rounds(rank, recipe, rounds))
        store.set(f"done {rank}", "")
        store.wait([f"done {other}" for other in range(WORLD)])  # nobody leaves while the other still listens
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _run(recipe: Recipe, rounds: int) -> dict[str, list[float]]:
    """Each round's slowest process."""
    results = multiprocessing.get_context("spawn").SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(_worker, (folder, recipe, rounds, results), nprocs=WORLD)
    ranks = [results.get() for _ in range(WORLD)]
    return {name: [max(turn) for turn in zip(*(rank[name] for rank in ranks), strict=True)] for name in ranks[0]}


def link_of(few: float, many: float, world: int = WORLD) -> Link:
    """The bandwidth and latency that explain an all-reduce of FEW bytes and one of MANY (see `collective_seconds`)."""
    part = 2 * (world - 1) / world
    bandwidth = part * (MANY - FEW) / max(many - few, 1e-9)
    hops = 2 * (world - 1).bit_length()
    return Link(bandwidth, max(0.0, few - part * FEW / bandwidth) / hops, "gloo on this machine, measured")


def check(model: str, batch: int, rounds: int = 7) -> Result:
    """Steps of `model` in float32 on `batch` images a process, one thread a process; see the module."""
    recipe = Recipe(model, batch)
    monitor = LoadMonitor()
    monitor.start()
    found = _run(recipe, rounds)
    others = monitor.stop()
    link = link_of(median(found["few"]), median(found["many"]))
    shapes = recipe.shapes()
    moved = 4 * sum(p.numel() for p in shapes.parameters() if p.requires_grad)
    beside = median(found["beside"])
    total, exposed = ddp_seconds(moved, WORLD, link, beside * 2 / 3)
    words = f"link measured: {1e-9 * link.bandwidth:.2f} GB/s, {1e6 * link.latency:.0f} us a hop"

    def row(backend: str, seconds: list[float], note: str) -> Row:
        timing = summary(seconds, is_loaded(others), others)
        return Row(
            kind="plan", name=model, case=f"N={batch} a process", dims=recipe.dims(), dtype="float32", direction="step",
            backend=backend, ours=True, ms=timing.ms, spread=timing.spread, rounds=timing.rounds, loaded=timing.loaded,
            others_cores=others, note=note, repeat=f"dit-fast plan --check --model {model} --batch-size {batch}",
        )  # fmt: skip

    rows = [
        row("1 process", found["alone"], "the machine to itself, one thread"),
        row("1 process beside another", found["beside"], "both compute, nothing is exchanged"),
        row(MEASURED, found["ddp"], words),
        row(PLANNED, [beside + exposed], "computed: what the backward can hide is hidden"),
        row(f"{PLANNED}, nothing hidden", [beside + total], "computed"),
    ]
    return Result(
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"), command=" ".join(["dit-fast", *sys.argv[1:]]),
        environment=environment("cpu"), ceilings={}, rows=rows,
        load={"others_cores": others, "limit": LIMIT, "allowed": True},
    )  # fmt: skip


def text_of(result: Result) -> str:
    """For people."""
    ms = {row.backend: row.ms or 0.0 for row in result.rows}
    lines = [f"{row.backend:38s}{row.ms:10.1f} ms  {row.note}" for row in result.rows]
    busy = ["other processes used the machine meanwhile: not to be believed"] if result.rows[0].loaded else []
    return "\n".join([*lines, f"measured over planned: {ms[MEASURED] / ms[PLANNED]:.2f}", *busy])
