# SPDX-License-Identifier: Apache-2.0
"""What one run is told, and what its kinds share: clock, ceilings, the watch for load, the list of the absent."""

import gc
import itertools
import shlex
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from .ceilings import Ceilings
from .load import LoadMonitor, is_loaded
from .schema import Row, Timing, summary
from .timing import Step, TimesItself, time_alternating


@dataclass(frozen=True)
class Options:
    """An empty tuple is "the kind's own choice".

    Attributes:
        kinds: what to measure, see `runner.KINDS`.
        ops, models, batches, dtypes, backends, peers: only these. The peer "none" stands for no peer at all.
        directions: of `model`: "forward", "forward+backward".
        device: "cpu" or "cuda".
        rounds: calls of each implementation that are timed; None: the kind's own.
        image_size: side of the latent, 32 for 256 pixels.
        steps: steps of sampling that are timed, of the 250.
        minutes: no case is begun after that many.
    """

    kinds: tuple[str, ...] = ("ops",)
    ops: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    batches: tuple[int, ...] = ()
    dtypes: tuple[str, ...] = ()
    backends: tuple[str, ...] = ()
    peers: tuple[str, ...] = ()
    directions: tuple[str, ...] = ()
    device: str = "cpu"
    rounds: int | None = None
    image_size: int = 32
    steps: int | None = None
    minutes: float | None = None

    def wants(self, peer: str) -> bool:
        return not self.peers or peer in self.peers


@dataclass
class Session:
    """`absent`: what did not run, and why. `refused`: what of ours was wrong. `batch`: what the cases of ops were made
    for; some have only a part of it."""

    options: Options
    ceilings: Ceilings
    monitor: LoadMonitor = field(default_factory=LoadMonitor)
    absent: dict[str, str] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)
    begun: float = field(default_factory=time.monotonic)
    batch: int | None = None

    @property
    def device(self) -> str:
        return self.options.device

    def dtypes(self) -> list[torch.dtype]:
        return [getattr(torch, name) for name in self.options.dtypes or ("float32", "bfloat16")]

    def out_of_time(self) -> bool:
        minutes = self.options.minutes
        return minutes is not None and time.monotonic() - self.begun > 60 * minutes

    def cases(
        self, model: str, batch: int, directions: Sequence[str] = ()
    ) -> Iterator[tuple[str, torch.dtype, int, str]]:
        """Every model, dtype, batch and direction asked for, or these; none is begun past the time.

        A kind that knows no directions has one, "".
        """
        told = self.options
        ways = (told.directions or directions) if directions else ("",)
        for case in itertools.product(told.models or (model,), self.dtypes(), told.batches or (batch,), ways):
            if self.out_of_time():
                return
            yield case

    @contextmanager
    def spared(self, where: str) -> Iterator[None]:
        """A block that may need more memory than there is: `where` is then listed as absent, and the run goes on."""
        try:
            yield
        except torch.OutOfMemoryError as error:
            self.absent[where] = f"out of memory: {str(error).splitlines()[0][:200]}"
        if where in self.absent and self.device == "cuda":
            gc.collect()
            torch.cuda.empty_cache()

    def refuse(self, what: str, reason: str) -> None:
        """Something of ours is wrong: it is not timed, and the run fails at its end."""
        self.refused.append(what)
        self.absent[what] = f"NOT TIMED, IT IS WRONG: {reason}"

    def time(
        self,
        steps: Mapping[str, Step | TimesItself],
        rounds: int,
        temperature: str = "",
        warm_up: int = 3,
        pause: float = 0.0,
    ) -> dict[str, Timing]:
        """Alternating, watched: every row of the set is marked where others used the machine meanwhile."""
        self.monitor.start()
        seconds = time_alternating(steps, rounds, self.device, temperature, warm_up, pause)
        cores = self.monitor.stop()
        return {name: summary(values, is_loaded(cores, self.device), cores) for name, values in seconds.items()}

    def row(self, timing: Timing | None, moved: float = 0, flops: float = 0, images: float = 0, **facts: Any) -> Row:
        """A row whose rates follow from its time.

        Args:
            moved, flops, images: of one call; 0 where that says nothing.
            facts: the other fields of `Row`.
        """
        if timing is None:
            return Row(**facts, repeat=self.command(facts))
        seconds = 1e-3 * timing.ms
        share, of = self.ceilings.share(timing.ms, facts["dtype"], moved, flops)
        return Row(
            ms=timing.ms, spread=timing.spread, rounds=timing.rounds, loaded=timing.loaded,
            others_cores=timing.others_cores, gbytes_per_s=moved / seconds / 1e9 if moved else None,
            tflops=flops / seconds / 1e12 if flops else None, share=share, share_of=of,
            images_per_s=images / seconds if images else None, repeat=self.command(facts, timing.rounds), **facts,
        )  # fmt: skip

    def command(self, facts: Mapping[str, Any], rounds: int = 0) -> str:
        """What measures this row again, beside eager."""
        option = "--op" if facts["kind"] == "ops" else "--model"
        words = ["dit-fast", "bench", facts["kind"], option, facts["name"], "--dtype", facts["dtype"]]
        batch = facts["dims"].get("batch", self.batch)
        words += ["--batch", str(batch)] if batch else []
        if "+" in facts["direction"]:
            words += ["--direction", facts["direction"]]
        words += ["--backend", facts["backend"], "--peer", "none"] if facts["ours"] else ["--peer", facts["backend"]]
        if self.options.image_size != 32:
            words += ["--image-size", str(self.options.image_size)]
        if self.options.steps:
            words += ["--steps", str(self.options.steps)]
        words += ["--rounds", str(rounds)] if rounds else []
        return shlex.join([*words, "--device", self.device])


def with_ratios(rows: Iterable[Row], measure: str = "eager") -> list[Row]:
    """The rows of one set, each with how many times it is as fast as eager."""
    from dataclasses import replace

    rows = list(rows)
    eager = next((row.ms for row in rows if row.backend == measure), None)
    return [replace(row, ratio_to_eager=eager / row.ms) if eager and row.ms else row for row in rows]
