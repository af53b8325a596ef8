# SPDX-License-Identifier: Apache-2.0
"""Processes for tests of training: forked from a server that has imported torch once, so that one more is cheap.

A function to run must be importable, what it is given is pickled, what it gives back goes through `torch.save`.
"""

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.train.programs"])

PATIENCE = 240
"""Seconds after which ranks that wait for each other are given up."""


def start(function: Callable[..., None], *arguments: Any) -> multiprocessing.Process:
    process = CONTEXT.Process(target=_alone, args=(function, arguments), daemon=True)
    process.start()
    return process


def run_ranks(function: Callable[..., Any], world: int, folder: Path, *arguments: Any) -> list[Any]:
    """`function(rank, folder, *arguments)` on `world` ranks of a gloo group: what each returns, in order of rank."""
    (folder / "store").unlink(missing_ok=True)
    ranks = [
        CONTEXT.Process(target=_rank, args=(function, rank, world, folder, arguments), daemon=True)
        for rank in range(world)
    ]
    for process in ranks:
        process.start()
    wait([process.sentinel for process in ranks], PATIENCE)  # of the first to end
    failed = any(process.exitcode for process in ranks)
    for process in ranks:
        process.join(0 if failed else PATIENCE)
        if process.exitcode is None:  # it waits for one that failed
            process.kill()
    assert [process.exitcode for process in ranks] == [0] * world, "what the rank said is above"
    return [torch.load(folder / f"{rank}.pt") for rank in range(world)]


def _alone(function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    function(*arguments)


def _rank(function: Any, rank: int, world: int, folder: Path, arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    torch.save(function(rank, folder, *arguments), folder / f"{rank}.pt")
    dist.destroy_process_group()
