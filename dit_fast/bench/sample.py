# SPDX-License-Identifier: Apache-2.0
"""Times guided sampling (DDPM, scale 4): this package's sampler with each of its exact accelerations off and on, beside
the plain model in the same sampler with all of them off.

A chain of few steps is timed and told by its step: what a sampler does once a call is in it, so more steps would look
no slower. Images a second are those of the paper's 250 steps. The error is that of the first images at the end of the
chain, beside the same chain, noise included, in float64.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from dit_fast.models import DiT
from dit_fast.ops import use_backend
from dit_fast.ops._core import BackendUnavailable
from dit_fast.parity import compare, distance, no_tf32
from dit_fast.sample import Sampler

from .memory_use import launches, peak_of_call
from .peers.model import attention_of, pinned
from .plain import plain_copy
from .recipe import CHECKED, Recipe, kernels_of
from .schema import Row, Timing
from .session import Session, with_ratios
from .timing import Step

ROUNDS = 3
MODEL, BATCH = "DiT-S/2", 1
PAPER_STEPS = 250
STEPS = 10
SCALE = 4.0

ACCELERATIONS = ("modulation_cache", "shared_patch_embedding", "cuda_graph")
OFF: dict[str, Any] = dict.fromkeys(ACCELERATIONS, False)


@dataclass(frozen=True)
class Way:
    """A model in a sampler. `backend` of this package's model; None: the plain model."""

    backend: str | None
    options: dict[str, Any] = field(default_factory=dict)
    compiled: bool = False


def own_ways(device: str, chosen: Sequence[str]) -> dict[str, Way]:
    """Those chosen, a name of these or a backend; else all accelerations, each of them off, and all of them off."""
    ways = {"auto": Way("auto")}
    for name in ACCELERATIONS:
        if name != "cuda_graph" or device == "cuda":
            ways[f"auto, no {name.replace('_', ' ')}"] = Way("auto", {name: False})
    ways["auto, none of these"] = Way("auto", OFF)
    return {name: ways.get(name, Way(name)) for name in chosen} if chosen else ways


PEERS = {"eager": Way("reference", OFF), "plain": Way(None, OFF), "compile": Way(None, OFF, compiled=True)}


def rows(session: Session) -> Iterator[Row]:
    options = session.options
    for name, dtype, batch, _ in session.cases(MODEL, BATCH):
        recipe = Recipe(name, batch, str(dtype).removeprefix("torch."), options.device, options.image_size)
        with session.spared(f"sample: {name}, {recipe.case()}"):
            yield from bench(session, recipe, options.steps or STEPS)


def labels_of(recipe: Recipe) -> list[int]:
    classes = recipe.shapes().num_classes
    return [(207 + 153 * i) % classes for i in range(recipe.batch)]


def chain_of(way: Way, recipe: Recipe, steps: int) -> Step:
    """A whole chain of that many steps, of the whole batch."""
    model = recipe.model()
    module: Any = plain_copy(model) if way.backend is None else model
    called = torch.compile(module, dynamic=False) if way.compiled else module
    labels = labels_of(recipe)
    pin = attention_of(replace(recipe, batch=2 * recipe.batch)) if way.backend is None else None
    with kernels_of(way.backend or "auto"):
        sampler = Sampler(called, steps=steps, cfg_scale=SCALE, **sizes_of(model), **way.options)

    def chain() -> Tensor:
        with kernels_of(way.backend or "auto"), pinned(pin):
            return sampler(labels, size=recipe.image_size, batch_size=recipe.batch)

    return chain


def exact_images(recipe: Recipe, steps: int) -> Tensor:
    """The first images' chain, its model in float64. The chain itself is float32, as everywhere: it draws the same
    noise, which is a function of the image's number alone."""
    few = replace(recipe, batch=min(recipe.batch, CHECKED))
    model = few.model(torch.float32).double()

    def exact(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return model(x.double(), t, y).float()

    with use_backend("reference"), no_tf32():
        sampler = Sampler(exact, steps=steps, cfg_scale=SCALE, device=recipe.device, **sizes_of(model), **OFF)
        return sampler(labels_of(few), size=recipe.image_size).double()


def sizes_of(model: DiT) -> dict[str, Any]:
    """What a sampler has to be told of a model that is no DiT of this package."""
    return {name: getattr(model, name) for name in ("in_channels", "num_classes", "learn_sigma")}


def prepare(session: Session, recipe: Recipe, steps: int) -> tuple[dict[str, Step], dict[str, float]]:
    """What is timed, and each one's error; what of ours is wrong or cannot run is left out with its reason."""
    options, device = session.options, recipe.device
    ways = {name: way for name, way in PEERS.items() if name == "eager" or options.wants(name)}
    ways |= own_ways(device, options.backends)
    exact = exact_images(recipe, steps)
    chains: dict[str, Step] = {}
    errors: dict[str, float] = {}
    eager: Any = None
    for name, way in ways.items():
        where = f"sample: {name}, {recipe.dtype}"
        try:
            chain = chain_of(way, recipe, steps)
            got: Any = chain()
        except BackendUnavailable as unavailable:
            session.absent[where] = str(unavailable)
            continue
        got = got[:CHECKED]
        eager = got if name == "eager" else eager
        ratio = compare(got, eager, exact, getattr(torch, recipe.dtype))[2]
        if name not in PEERS and not ratio <= 1:
            session.refuse(where, f"its images' error is {ratio:.2f} times what is allowed beside eager's")
            continue
        chains[name], errors[name] = chain, distance(got, exact)["rms"]
    return chains, errors


def bench(session: Session, recipe: Recipe, steps: int) -> Iterator[Row]:
    """Rows of one case; eager, always there, is the measure."""
    device = recipe.device
    chains, errors = prepare(session, recipe, steps)
    memory = {name: peak_of_call(chain, device) for name, chain in chains.items()}
    counts = {name: launches(chain) // steps for name, chain in chains.items()} if device == "cuda" else {}
    times = session.time(chains, session.options.rounds or ROUNDS, "", 0)  # they have run
    flops = 2 * recipe.flops()  # both halves of the guidance
    yield from with_ratios(
        session.row(
            a_step(times[name], steps), 0, flops, recipe.batch / PAPER_STEPS, kind="sample", name=recipe.name,
            case=f"{recipe.case()}, guided, {steps} steps", dims=recipe.dims(), dtype=recipe.dtype, direction="step",
            backend=name, ours=name not in PEERS, peak_bytes=memory[name][0], memory_method=memory[name][1],
            launches=counts.get(name), error=errors[name], error_eager=errors["eager"],
            note=f"ms are of one step of a chain of {steps}; images a second are of {PAPER_STEPS} such steps",
        )
        for name in chains
    )  # fmt: skip


def a_step(timing: Timing, steps: int) -> Timing:
    return replace(timing, ms=timing.ms / steps)
