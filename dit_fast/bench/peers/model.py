# SPDX-License-Identifier: Apache-2.0
"""Whole models beside this package's: each peer computes the same function from the same weights.

A peer is a name, a reason why it cannot run here, and a maker of a step that answers the model's output. Eager PyTorch
is there twice: "eager" is this package's model on its reference, "plain" the model as a textbook writes it (`plain`),
which is what the compilers get too.
"""

import importlib.util
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from dit_fast.ops import use_backend
from dit_fast.ops.attention.libraries import sdpa_choice
from dit_fast.parity import no_tf32

from ..plain import plain_copy
from ..recipe import CHECKED, Recipe
from ..timing import Step
from .runtimes import onnxruntime_step, onnxruntime_why_not, openvino_step, openvino_why_not


@dataclass(frozen=True)
class ModelPeer:
    """One alternative.

    Attributes:
        make: (recipe, train) -> a step that answers the output; `train`: after a backward through the whole model.
        why_not: (recipe, train) -> why it cannot run here, or None.
        alone: in a process of its own.
        own_numerics: its function is not quite ours, so its error is measured against itself in float64.
    """

    make: Callable[..., Step]
    why_not: Callable[[Recipe, bool], str | None]
    alone: bool = False
    own_numerics: bool = False
    note: str = ""


def never(recipe: Recipe, train: bool) -> str | None:
    return None


def needs(package: str) -> Callable[[Recipe, bool], str | None]:
    def why_not(recipe: Recipe, train: bool) -> str | None:
        return f"{package} is not installed" if importlib.util.find_spec(package) is None else None

    return why_not


def attention_of(recipe: Recipe) -> SDPBackend:
    """The kernel that PyTorch picks for the plain model's heads: pinned, so that all that use it use the same."""
    d = recipe.dims()
    shape = d["batch"], d["tokens"], d["heads"], d["width"] // d["heads"]
    q = torch.zeros(shape, dtype=getattr(torch, recipe.dtype), device=recipe.device)
    return sdpa_choice(q, q, q, shape[-1] ** -0.5)


def frozen_why_not(recipe: Recipe, train: bool) -> str | None:
    if recipe.device != "cpu":
        return "freezing packs weights for CPUs"
    return "frozen weights have no gradient" if train else None


def pinned(choice: SDPBackend | None) -> AbstractContextManager[Any]:
    """One attention kernel of PyTorch's, for a block; None: whatever runs there."""
    return nullcontext() if choice is None else sdpa_kernel(choice)


def step_of(module: Callable[..., Tensor], recipe: Recipe, train: bool, parameters: list[Tensor]) -> Step:
    """A forward with the plain model's attention pinned: without gradients, or with the whole backward after it."""
    inputs, choice = recipe.inputs(), attention_of(recipe)

    def forward() -> Tensor:
        with pinned(choice), torch.no_grad():
            return module(*inputs)

    def both() -> Tensor:
        with pinned(choice):
            return backward_of(module(*inputs), parameters)

    return both if train else forward


def backward_of(out: Tensor, parameters: list[Tensor]) -> Tensor:
    """The gradients of all parameters for a fixed cotangent, thrown away; the answer is the output."""
    for parameter in parameters:
        parameter.grad = None
    out.backward(torch.ones_like(out))
    return out.detach()


def trainable(module: torch.nn.Module) -> list[Tensor]:
    return [p for p in module.parameters() if p.requires_grad]


def eager(recipe: Recipe, train: bool) -> Step:
    model, inputs = recipe.model(), recipe.inputs()

    def step() -> Tensor:
        with use_backend("reference"), nullcontext() if train else torch.no_grad():
            out = model(*inputs)
            return backward_of(out, trainable(model)) if train else out

    return step


def plain(recipe: Recipe, train: bool) -> Step:
    module = plain_copy(recipe.model())
    return step_of(module, recipe, train, trainable(module))


def compiled(recipe: Recipe, train: bool, mode: str | None = None) -> Step:
    module = plain_copy(recipe.model())
    if mode is not None and train:
        mode += "-no-cudagraphs"
    step = step_of(torch.compile(module, dynamic=False, mode=mode), recipe, train, trainable(module))
    step()  # compiles
    return step


def frozen(recipe: Recipe, train: bool = False) -> Step:
    """torch.compile with weights as constants, packed for the CPU. Alone in its process: see the facts in `child`."""
    import torch._inductor.config as inductor

    inductor.freezing = True
    module = plain_copy(recipe.model()).requires_grad_(False)
    step = step_of(torch.compile(module, dynamic=False), recipe, False, [])
    step()
    return step


def diffusers_module(recipe: Recipe, dtype: torch.dtype | None = None) -> torch.nn.Module:
    """diffusers' DiT with the recipe's weights."""
    from diffusers import DiTTransformer2DModel

    from dit_fast.integrations.checkpoints.diffusers_keys import config_to_diffusers, to_diffusers

    model = recipe.model(dtype)
    weight = model.final_layer.linear.weight
    module = DiTTransformer2DModel(**config_to_diffusers(model.config)).to(weight.device, weight.dtype)
    module.load_state_dict(to_diffusers(model.state_dict(), model.config), strict=False)  # positions are computed
    return module.eval()


def diffusers_step(recipe: Recipe, train: bool, compile: bool = False) -> Step:
    module = diffusers_module(recipe)
    called: Any = torch.compile(module, dynamic=False) if compile else module

    def call(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return called(x, timestep=t, class_labels=y, return_dict=False)[0]

    step = step_of(call, recipe, train, trainable(module))
    step()
    return step


def diffusers_exact(recipe: Recipe) -> Tensor:
    """What diffusers' own numerics answer for the first images, in float64."""
    x, t, y = (tensor[:CHECKED] for tensor in recipe.inputs())
    with torch.no_grad(), no_tf32():
        return diffusers_module(recipe).double()(x.double(), timestep=t, class_labels=y, return_dict=False)[0]


PEERS: dict[str, ModelPeer] = {
    "eager": ModelPeer(eager, never, note="this package's model on its reference"),
    "plain": ModelPeer(plain, never),
    "compile": ModelPeer(compiled, never),
    "compile-max-autotune": ModelPeer(partial(compiled, mode="max-autotune"), never),
    "compile-frozen": ModelPeer(frozen, frozen_why_not, alone=True),
    "diffusers": ModelPeer(diffusers_step, needs("diffusers"), own_numerics=True),
    "diffusers-compile": ModelPeer(partial(diffusers_step, compile=True), needs("diffusers"), own_numerics=True),
    "openvino": ModelPeer(openvino_step, openvino_why_not, note="timestep features in float32, outside"),
    "onnxruntime": ModelPeer(onnxruntime_step, onnxruntime_why_not),
}
"""By name, in the order of tables."""
