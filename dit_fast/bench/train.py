# SPDX-License-Identifier: Apache-2.0
"""Times whole training steps: the paper's loss, its backward, AdamW and the average of the weights (DiT, section 4).

Weights are float32; a row in bfloat16 runs the model under autocast. The gradients of this package's model are held
against float64 on two images before anything is timed; a row's error is that of the losses of its batch.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dit_fast.diffusion import create_diffusion
from dit_fast.models import DiT
from dit_fast.ops import use_backend
from dit_fast.ops._core import BackendUnavailable
from dit_fast.optim import AdamWEMA
from dit_fast.parity import compare, distance, no_tf32

from .memory_use import launches, peak_of_call
from .peers.model import attention_of, pinned
from .plain import plain_copy
from .recipe import CHECKED, Recipe, kernels_of
from .schema import Row
from .session import Session, with_ratios

ROUNDS = 7
MODEL, BATCH = "DiT-S/2", 8
LR, EMA = 1e-4, 0.9999


@dataclass(frozen=True)
class Way:
    """One implementation of the step.

    Attributes:
        backend: of this package's model; None: the plain model.
        compiled: arguments of torch.compile; None: not compiled.
        fused: AdamWEMA in one pass; else PyTorch's fused AdamW, and a lerp of all averages.
        note: what a reader has to know.
    """

    backend: str | None
    compiled: dict[str, Any] | None = None
    fused: bool = False
    note: str = ""


TORCH_OPTIMIZER = "torch's fused AdamW, then a lerp of the averages"
OWN = {
    "auto": Way("auto", fused=True),
    "auto, compiled": Way("auto", {"dynamic": False}, fused=True),
    "auto, torch AdamW": Way("auto", note=TORCH_OPTIMIZER),
}
PEERS = {
    "eager": Way("reference", note=f"this package's model on its reference; {TORCH_OPTIMIZER}"),
    "plain": Way(None, note=TORCH_OPTIMIZER),
    "compile": Way(None, {"dynamic": False}, note=TORCH_OPTIMIZER),
    "compile-max-autotune": Way(None, {"dynamic": False, "mode": "max-autotune-no-cudagraphs"}, note=TORCH_OPTIMIZER),
}


def rows(session: Session) -> Iterator[Row]:
    options = session.options
    for name, dtype, batch, _ in session.cases(MODEL, BATCH):
        recipe = Recipe(name, batch, "float32", options.device, options.image_size)
        with session.spared(f"train: {name}, {recipe.case()}"):
            yield from bench(session, recipe, dtype)


class LerpEMA:
    """PyTorch's fused AdamW and one multi-tensor lerp: the fastest there is without kernels of one's own."""

    def __init__(self, parameters: list[Tensor]) -> None:
        self.parameters = parameters
        self.averages = [p.detach().clone() for p in parameters]
        self.adamw = torch.optim.AdamW(parameters, lr=LR, weight_decay=0.0, fused=True)

    def step(self) -> None:
        self.adamw.step()
        with torch.no_grad():
            torch._foreach_lerp_(self.averages, [p.detach() for p in self.parameters], 1 - EMA)


@dataclass
class Problem:
    """A batch and its noise, the same for all."""

    x: Tensor
    t: Tensor
    y: Tensor
    noise: Tensor

    @staticmethod
    def of(recipe: Recipe) -> "Problem":
        x, t, y = recipe.inputs()
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(recipe.seed + 2))
        return Problem(x, t, y, noise.to(x))

    def first(self, dtype: torch.dtype) -> "Problem":
        x, noise = self.x[:CHECKED].to(dtype), self.noise[:CHECKED].to(dtype)
        return Problem(x, self.t[:CHECKED], self.y[:CHECKED], noise)

    def losses(self, model: Callable[..., Tensor]) -> Tensor:
        """(N,), with the learned variance's part."""
        return DIFFUSION.training_losses(model, self.x, self.t, {"y": self.y}, self.noise)["loss"]


DIFFUSION = create_diffusion("")


def precision(recipe: Recipe, dtype: torch.dtype) -> AbstractContextManager[Any]:
    return nullcontext() if dtype == torch.float32 else torch.autocast(recipe.device, dtype)


def step_of(way: Way, recipe: Recipe, dtype: torch.dtype) -> Callable[[], Tensor]:
    """A step that answers the losses of the batch, before the update."""
    model = recipe.model()
    module: torch.nn.Module = plain_copy(model) if way.backend is None else model
    parameters: list[Tensor] = [p for p in module.parameters() if p.requires_grad]
    optimizer = AdamWEMA(parameters, LR, weight_decay=0.0, ema_decay=EMA) if way.fused else LerpEMA(parameters)
    called = module if way.compiled is None else torch.compile(module, **way.compiled)
    problem, pin = Problem.of(recipe), attention_of(recipe) if way.backend is None else None

    def step() -> Tensor:
        with kernels_of(way.backend or "auto"), pinned(pin):
            with precision(recipe, dtype):
                losses = problem.losses(called)
            losses.mean().backward()
            optimizer.step()
        for parameter in parameters:
            parameter.grad = None
        return losses.detach()

    return step


def gradients(model: DiT, problem: Problem, backend: str, context: AbstractContextManager[Any]) -> Tensor:
    """All gradients of the mean loss as one vector."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    with use_backend("reference") if backend == "reference" else kernels_of(backend), no_tf32(), context:
        grads = torch.autograd.grad(problem.losses(model).mean(), parameters)
    return torch.cat([g.flatten() for g in grads])


def wrong(recipe: Recipe, backend: str, dtype: torch.dtype) -> str | None:
    """What is wrong with our gradients of a step on two images, beside eager's distance from float64; or None."""
    problem, model = Problem.of(recipe), recipe.model()
    exact = gradients(recipe.model(torch.float64), problem.first(torch.float64), "reference", nullcontext())
    small = problem.first(torch.float32)
    eager = gradients(model, small, "reference", precision(recipe, dtype))
    got = gradients(model, small, backend, precision(recipe, dtype))
    ratio = compare(got, eager, exact, dtype)[2]
    return None if ratio <= 1 else f"its gradients' error is {ratio:.2f} times what is allowed beside eager's"


@torch.no_grad()
def exact_losses(recipe: Recipe) -> Tensor:
    """Of the first images, in float64."""
    problem = Problem.of(recipe).first(torch.float64)
    with use_backend("reference"), no_tf32():
        return problem.losses(recipe.model(torch.float64))


def ways(session: Session, recipe: Recipe, dtype: torch.dtype) -> dict[str, Way]:
    """What is timed: ours that is right, then the peers asked for."""
    options, chosen = session.options, dict(OWN)
    if options.backends:
        chosen = {name: OWN.get(name, Way(name, fused=True)) for name in options.backends}
    for backend in dict.fromkeys(way.backend for way in chosen.values()):
        assert backend is not None
        where = f"train: {backend}, {str(dtype).removeprefix('torch.')}"
        try:
            reason = wrong(recipe, backend, dtype)
        except BackendUnavailable as unavailable:
            session.absent[where] = str(unavailable)
        else:
            if reason is None:
                continue
            session.refuse(where, reason)
        chosen = {name: way for name, way in chosen.items() if way.backend != backend}
    chosen |= {name: way for name, way in PEERS.items() if name == "eager" or options.wants(name)}
    return chosen


def bench(session: Session, recipe: Recipe, dtype: torch.dtype) -> Iterator[Row]:
    """Rows of one case; eager, always there, is the measure."""
    name, device = str(dtype).removeprefix("torch."), recipe.device
    chosen, exact = ways(session, recipe, dtype), exact_losses(recipe)
    torch.compiler.reset()
    steps: dict[str, Callable[[], Tensor]] = {}
    errors: dict[str, float] = {}
    for key, way in chosen.items():
        with session.spared(f"train: {key}, {name}, {recipe.case()}"):
            step = step_of(way, recipe, dtype)
            errors[key] = distance(step()[:CHECKED], exact)["rms"]  # the first step: the weights are still the same
            steps[key] = step
    memory = {key: peak_of_call(step, device) for key, step in steps.items()}
    counts = {key: launches(step) for key, step in steps.items()} if device == "cuda" else {}
    times = session.time(steps, session.options.rounds or ROUNDS, "", 1)
    pinned = f"SDPA pinned to {attention_of(recipe).name}"
    yield from with_ratios(
        session.row(
            times[key], 0, 3 * recipe.flops(), recipe.batch, kind="train", name=recipe.name, case=recipe.case(),
            dims=recipe.dims(), dtype=name, direction="step", backend=key, ours=key in OWN or key not in PEERS,
            peak_bytes=memory[key][0], memory_method=memory[key][1], launches=counts.get(key), error=errors[key],
            error_eager=errors.get("eager"),
            note="; ".join(filter(None, (chosen[key].note, pinned if chosen[key].backend is None else ""))),
        )
        for key in steps
    )  # fmt: skip
