# SPDX-License-Identifier: Apache-2.0
"""Peak memory of inference and of training, weights and all: each implementation in a process of its own.

On a GPU: the most that PyTorch's allocator gave out. On a CPU: the high-water mark of the process's resident memory
during one call, less what the process had before the model was made. Both after a first call, which may compile.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch

from . import train
from .child import Child
from .memory_use import RESIDENT_METHOD
from .model import OWN, own_step
from .peers.model import PEERS
from .recipe import Recipe
from .schema import Row
from .session import Session

Job = tuple[Callable[..., Any], dict[str, Any], bool]
"""What makes the step, its arguments, and whether it is ours."""

MODEL, BATCH = "DiT-S/2", 8
CUDA_METHOD = "torch.cuda.max_memory_allocated over one call, in a process of its own, weights included"


def rows(session: Session) -> Iterator[Row]:
    for name, dtype, batch, direction in session.cases(MODEL, BATCH, ("forward", "step")):
        yield from bench(session, name, batch, dtype, direction)


def jobs(session: Session, recipe: Recipe, dtype: torch.dtype, direction: str) -> dict[str, Job]:
    options = session.options
    found: dict[str, Job] = {}
    if direction == "step":
        full = Recipe(recipe.name, recipe.batch, "float32", recipe.device, recipe.image_size)
        own = {n: train.OWN.get(n, train.Way(n, fused=True)) for n in options.backends or train.OWN}
        peers = {n: way for n, way in train.PEERS.items() if options.wants(n)}
        for name, way in (own | peers).items():
            found[name] = (train.step_of, {"way": way, "recipe": full, "dtype": dtype}, name in own)
        return found
    for backend in options.backends or OWN[recipe.device][:1]:
        found[backend] = (own_step, {"recipe": recipe, "backend": backend, "train": False}, True)
    for name, peer in PEERS.items():
        if not options.wants(name):
            continue
        reason = peer.why_not(recipe, False)
        if reason is not None:
            session.absent[f"memory: {name}, {recipe.dtype}"] = reason
            continue
        found[name] = (peer.make, {"recipe": recipe, "train": False}, False)
    return found


def bench(session: Session, name: str, batch: int, dtype: torch.dtype, direction: str) -> Iterator[Row]:
    device, precision = session.device, str(dtype).removeprefix("torch.")
    recipe = Recipe(name, batch, precision, device, session.options.image_size)
    for key, (factory, arguments, ours) in jobs(session, recipe, dtype, direction).items():
        try:
            peak = peak_alone(factory, arguments, device)
        except RuntimeError as error:
            session.absent[f"memory: {key}, {precision}, {direction}"] = f"failed: {str(error).splitlines()[0][:300]}"
            continue
        yield session.row(
            None, kind="memory", name=name, case=recipe.case(), dims=recipe.dims(), dtype=precision,
            direction=direction, backend=key, ours=ours, peak_bytes=peak,
            memory_method=CUDA_METHOD if device == "cuda" else RESIDENT_METHOD,
        )  # fmt: skip


def peak_alone(factory: Callable[..., Any], arguments: dict[str, Any], device: str) -> int:
    """Bytes.

    Raises:
        RuntimeError: the process failed; the first line says how.
    """
    child = Child(factory, arguments, device)
    try:
        child.ask("seconds")
        return child.peak_bytes()
    finally:
        child.close()
