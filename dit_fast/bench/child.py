# SPDX-License-Identifier: Apache-2.0
"""A step in a process of its own that runs when it is told to, so that it alternates with those of this process.

For what cannot share a process: graphs with frozen weights (a second frozen copy silently reuses the first's), and
memory that only a process's own high-water mark shows.
"""

import contextlib
import multiprocessing
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor

from .memory_use import reset_peak_resident, resident
from .recipe import weights
from .timing import HostClock, Step

Factory = Callable[..., Step]


def serve(connection: Connection, factory: Factory, arguments: dict[str, Any], threads: int, device: str) -> None:
    """The child: make the step, then answer until told to stop."""
    torch.set_num_threads(threads)
    clock = HostClock(device)
    try:
        before = _memory(device)
        step = factory(**arguments)
        weights.cache_clear()  # those drawn for others: here is one model only
        connection.send(("made", None))
        while True:
            asked = connection.recv()
            if asked == "stop":
                return
            connection.send(("answer", _answer(asked, step, clock, device, before)))
    except EOFError:
        return
    except BaseException as error:
        connection.send(("failed", f"{type(error).__name__}: {error}\n{traceback.format_exc()[-2000:]}"))


def _answer(asked: str, step: Step, clock: HostClock, device: str, before: int) -> Any:
    if asked == "seconds":
        return clock(step)
    if asked == "output":
        out = step()
        return out.detach().float().cpu().numpy() if isinstance(out, Tensor) else out
    assert asked == "peak", asked
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated()
    reset_peak_resident()
    step()
    return resident() - before


def _memory(device: str) -> int:
    return 0 if device == "cuda" else resident("VmRSS")


class Child:
    """See the module. `factory` is a function of a module, which the child imports.

    Raises:
        RuntimeError: the child failed; the message is its.
    """

    def __init__(self, factory: Factory, arguments: dict[str, Any], device: str = "cpu") -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(
            target=serve, args=(theirs, factory, arguments, torch.get_num_threads(), device), daemon=True
        )
        self.process.start()
        theirs.close()
        self._receive()

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def _receive(self) -> Any:
        try:
            kind, value = self.connection.recv()
        except EOFError:
            self.process.join(10)
            raise RuntimeError(f"the process ended with status {self.process.exitcode}") from None
        if kind == "failed":
            raise RuntimeError(value)
        return value

    def ask(self, what: str) -> Any:
        self.connection.send(what)
        return self._receive()

    def seconds(self) -> float:
        return self.ask("seconds")

    def output(self) -> Tensor:
        return torch.as_tensor(self.ask("output"))

    def peak_bytes(self) -> int:
        return self.ask("peak")

    def close(self) -> None:
        if self.process.is_alive():
            with contextlib.suppress(OSError):
                self.connection.send("stop")
            self.process.join(10)
            if self.process.is_alive():
                self.process.terminate()
                self.process.join()
        self.connection.close()
