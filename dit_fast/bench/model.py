# SPDX-License-Identifier: Apache-2.0
"""Times whole models: a forward, and a forward with its backward, of this package's DiT beside its alternatives.

Weights and inputs are in the row's dtype. The output of each is compared with float64 before anything is timed: this
package's is refused where its error is more than eager PyTorch's allows; a peer's stands beside its speed.
"""

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dit_fast.ops._core import BackendUnavailable
from dit_fast.parity import compare, distance

from .child import Child
from .memory_use import launches, peak_of_call
from .peers.model import PEERS, attention_of, backward_of, diffusers_exact, trainable
from .recipe import CHECKED, Recipe, kernels_of
from .schema import Row
from .session import Session, with_ratios
from .timing import Step

ROUNDS = 9
MODEL, BATCH = "DiT-S/2", 2
DIRECTIONS = ("forward", "forward+backward")
PAUSE = 0.1
"""Seconds, after which the threads of every peer sleep: ONNX Runtime's spin for 0.055."""

OWN = {"cpu": ("auto", "cpu"), "cuda": ("auto", "cuda", "triton")}
"""Backends of ours that are timed where none is named."""


@dataclass
class Entry:
    """An implementation that is ready: its step, or the child that has it; what is known of it."""

    step: Any
    ours: bool
    note: str = ""
    error: float | None = None

    def output(self) -> Tensor:
        return self.step.output() if isinstance(self.step, Child) else self.step()


def rows(session: Session) -> Iterator[Row]:
    options = session.options
    for name, dtype, batch, direction in session.cases(MODEL, BATCH, ("forward",)):
        recipe = Recipe(name, batch, str(dtype).removeprefix("torch."), options.device, options.image_size)
        with session.spared(f"model: {name}, {recipe.case()}, {direction}"):
            yield from bench(session, recipe, direction == "forward+backward")


def own_step(recipe: Recipe, backend: str, train: bool) -> Step:
    model, inputs = recipe.model(), recipe.inputs()
    parameters = trainable(model)

    def step() -> Tensor:
        with kernels_of(backend), nullcontext() if train else torch.no_grad():
            out = model(*inputs)
            return backward_of(out, parameters) if train else out

    return step


def prepare(session: Session, recipe: Recipe, train: bool) -> dict[str, Entry]:
    """Every implementation asked for that can run here; the others are listed as absent."""
    entries: dict[str, Entry] = {}
    for backend in session.options.backends or OWN[recipe.device]:
        entries[backend] = Entry(own_step(recipe, backend, train), ours=True)
    pinned = f"SDPA pinned to {attention_of(recipe).name}"
    for name, peer in PEERS.items():
        if name != "eager" and not session.options.wants(name):
            continue
        where = f"model: {name}, {recipe.dtype}"
        reason = peer.why_not(recipe, train)
        if reason is not None:
            session.absent[where] = reason
            continue
        try:
            step: Any = Child(peer.make, {"recipe": recipe, "train": train}, recipe.device) if peer.alone \
                else peer.make(recipe, train)  # fmt: skip
        except Exception as error:  # a peer is another's code: what it raises is a reason, not our failure
            session.absent[where] = f"failed: {type(error).__name__}: {str(error)[:300]}"
            continue
        entries[name] = Entry(step, ours=False, note=peer.note or ("" if name in RUNTIMES else pinned))
    return entries


RUNTIMES = ("eager", "openvino", "onnxruntime")
"""Peers whose attention is not PyTorch's."""


def judge(session: Session, recipe: Recipe, entries: dict[str, Entry]) -> None:
    """Fill in the errors; take away what of ours is wrong or cannot run, with its reason."""
    dtype = getattr(torch, recipe.dtype)
    exact = recipe.exact(recipe.model(torch.float32))
    eager = entries["eager"].output()[:CHECKED]
    for name, entry in list(entries.items()):
        where = f"model: {name}, {recipe.dtype}"
        try:
            got = entry.output()[:CHECKED]
        except BackendUnavailable as reason:
            session.absent[where] = str(reason)
            del entries[name]
            continue
        truth = diffusers_exact(recipe) if not entry.ours and PEERS[name].own_numerics else exact
        entry.error = distance(got, truth)["rms"]
        if entry.ours:
            ratio = compare(got, eager.to(got), exact, dtype)[2]
            if not ratio <= 1:
                session.refuse(where, f"its error is {ratio:.2f} times what is allowed beside eager's")
                del entries[name]


def bench(session: Session, recipe: Recipe, train: bool) -> Iterator[Row]:
    """Rows of one case; eager, always there, is the measure."""
    entries = prepare(session, recipe, train)
    children = [entry.step for entry in entries.values() if isinstance(entry.step, Child)]
    try:
        judge(session, recipe, entries)
        session.monitor.children = [child.pid for child in children]
        memory = measure_memory(entries, recipe.device)
        counts = {}
        if recipe.device == "cuda":
            counts = {n: launches(e.step) for n, e in entries.items() if not isinstance(e.step, Child)}
        steps, rounds = {n: e.step for n, e in entries.items()}, session.options.rounds or ROUNDS
        if recipe.device == "cpu":
            times = session.time(steps, rounds, warm_up=1, pause=PAUSE)
        else:
            times = session.time(steps, rounds)
        error_eager = entries["eager"].error
        yield from with_ratios(
            session.row(
                times[n], 0, recipe.flops() * (3 if train else 1), recipe.batch, kind="model", name=recipe.name,
                case=recipe.case(), dims=recipe.dims(), dtype=recipe.dtype, direction=DIRECTIONS[train], backend=n,
                ours=e.ours, peak_bytes=memory[n][0], memory_method=memory[n][1], launches=counts.get(n),
                error=e.error, error_eager=error_eager, note=e.note,
            )
            for n, e in entries.items()
        )  # fmt: skip
    finally:
        session.monitor.children = []
        for child in children:
            child.close()


def measure_memory(entries: Mapping[str, Entry], device: str) -> dict[str, tuple[int | None, str]]:
    """Of one call each. What does not allocate through PyTorch in this process is measured by the kind `memory`."""
    hidden = "not measured: another process or allocator; see the kind `memory`"
    return {
        name: (None, hidden) if isinstance(entry.step, Child) or name in ("openvino", "onnxruntime")
        else peak_of_call(entry.step, device)
        for name, entry in entries.items()
    }  # fmt: skip
