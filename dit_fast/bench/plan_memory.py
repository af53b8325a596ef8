# SPDX-License-Identifier: Apache-2.0
"""Bytes that a training forward keeps for its backward, counted on fake tensors: nothing is computed or allocated."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from dit_fast.models import DiT_models
from dit_fast.ops import use_backend

from .recipe import parse_model


@dataclass(frozen=True)
class Activations:
    """Bytes an image, and bytes whatever the batch: the weights that autocast rounds."""

    per_image: int
    fixed: int


@dataclass(frozen=True)
class Kept:
    """Of one forward, all in bytes: everything, what the last block keeps, and that block's inputs."""

    whole: int
    block: int
    inputs: int


@cache
def activations(model: str, image_size: int, precision: str, checkpointing: bool = False) -> Activations:
    """Of `model` on latents of `image_size`, in a precision of `TrainConfig`.

    Counted at depths 1 and 2 and batches 2 and 3: all blocks are alike, and so are all images. With `checkpointing` a
    block keeps its inputs, and one block at a time is computed again.
    """
    base, arguments = parse_model(model)
    depth = arguments.pop("depth", None) or depth_of(base)

    def per_image_and_fixed(layers: int) -> tuple[int, int]:
        two, three = (kept(base, {**arguments, "depth": layers}, image_size, precision, batch) for batch in (2, 3))
        per_image = three.whole - two.whole
        fixed = two.whole - 2 * per_image
        if checkpointing:
            per_image += layers * (three.inputs - two.inputs) - (layers - 1) * (three.block - two.block)
        return per_image, fixed

    one, two = per_image_and_fixed(1), per_image_and_fixed(2)
    return Activations(*(a + (depth - 1) * (b - a) for a, b in zip(one, two, strict=True)))


def depth_of(base: str) -> int:
    with torch.device("meta"):
        return len(DiT_models[base]().blocks)


def kept(base: str, arguments: dict[str, int], image_size: int, precision: str, batch: int) -> Kept:
    with FakeTensorMode(), use_backend("cpu"):  # the kernels of all devices keep the same tensors
        model = DiT_models[base](input_size=image_size, **arguments).train()
        x = torch.empty(batch, model.in_channels, image_size, image_size)
        if precision == "pure_bf16":
            x = x.to(torch.bfloat16)
            for parameter in model.parameters():
                parameter.data = parameter.data.to(torch.bfloat16)
        t, y = torch.empty(batch), torch.empty(batch, dtype=torch.int64) if model.num_classes else None
        saved = _Saved(model.parameters())
        before: list[int] = []
        after: list[int] = []
        inputs: list[int] = []

        def enter(block: nn.Module, given: tuple[object, ...]) -> None:
            before.append(saved.bytes)
            inputs.append(sum(a.nbytes for a in given if isinstance(a, Tensor)))

        model.blocks[-1].register_forward_pre_hook(enter)
        model.blocks[-1].register_forward_hook(lambda *_: after.append(saved.bytes))
        with saved.hooks(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            model(x, t, y)
    return Kept(saved.bytes, after[0] - before[0], inputs[0])


class _Saved:
    """Counts the memory of all tensors that are saved for the backward, each once, parameters left out."""

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        self.bytes = 0
        self._known = {p.untyped_storage()._cdata: p for p in parameters}

    def hooks(self) -> torch.autograd.graph.saved_tensors_hooks:
        return torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._known:
            self._known[storage._cdata] = tensor  # kept alive: else its address could be another's later
            self.bytes += storage.nbytes()
        return tensor
