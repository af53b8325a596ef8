# SPDX-License-Identifier: Apache-2.0
"""The processes of `dit-fast encode`: torchrun's ranks, or children of this one. Each shard is one process's own."""

import os
import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from multiprocessing.connection import wait
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from .encoder import Job, Report


class Ranks:
    """The processes that torchrun has started, or this one alone."""

    rank, size, local = 0, 1, 0

    def all(self, value: Any) -> list[Any]:
        """The values of all ranks; waits for them."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values


@contextmanager
def ranks() -> Iterator[Ranks]:
    """Joins torchrun's ranks, unless the caller has."""
    found = Ranks()
    if not (dist.is_available() and dist.is_torchelastic_launched()):
        yield found
        return
    joined = dist.is_initialized()
    if not joined:
        dist.init_process_group("gloo", timeout=timedelta(days=30))  # ranks wait for the slowest, which may take days
    found.rank, found.size, found.local = dist.get_rank(), dist.get_world_size(), dist.get_node_local_rank()
    try:
        yield found
    finally:
        if not joined:
            dist.destroy_process_group()


def run_children(job: Job, numbers: list[int], count: int, report: Report) -> list[str]:
    """`Job.run`, the shards shared out among `count` new processes.

    Raises:
        ValueError, OSError: what the first child that failed raised; the others are stopped.
        RuntimeError: a child was killed.
    """
    context = mp.get_context("spawn")
    told: Any = context.Queue()
    children = [
        context.Process(target=child, args=(on_gpu(job, i), numbers[i::count], told), name=f"encode-{i}")
        for i in range(count)
    ]
    problems: list[str] = []
    try:
        for process in children:
            process.start()
        running = count
        while running:
            try:
                kind, value = told.get(timeout=1)
            except queue.Empty:
                ended = [p for p in children if p.exitcode]
                if ended:
                    raise RuntimeError(
                        f"process {ended[0].name} ended with exit code {ended[0].exitcode} (a negative one is a signal:"
                        " -9 may be a lack of memory); whole shards are kept, run the same command to go on"
                    ) from None
                continue
            if kind == "rows":
                report(value)
            elif kind == "error":
                raise value
            else:
                problems += value
                running -= 1
    finally:
        for process in children:
            if process.is_alive():
                process.terminate()
        for process in children:
            if process.pid is not None:
                process.join()
    return problems


def on_gpu(job: Job, index: int) -> Job:
    return replace(job, device=f"cuda:{index % torch.cuda.device_count()}") if job.device == "cuda" else job


def child(job: Job, numbers: list[int], told: Any) -> None:
    parent = mp.parent_process()
    assert parent is not None
    threading.Thread(target=end_with, args=(parent.sentinel,), daemon=True).start()
    try:
        told.put(("done", job.run(numbers, lambda rows: told.put(("rows", rows)))))
    except (ValueError, OSError) as error:
        told.put(("error", error))


def end_with(sentinel: int) -> None:
    """Who is killed does not stop its children: they look themselves, lest two encoders write to one folder."""
    wait([sentinel])
    os._exit(1)
