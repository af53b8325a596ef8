# SPDX-License-Identifier: Apache-2.0
"""Which model on which inputs: a few words that any process can make the same tensors from."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from dit_fast.models import DiT, DiT_models, count_macs
from dit_fast.ops import NAMES, use_backend
from dit_fast.ops._core import OPS
from dit_fast.parity import enliven, no_tf32

CHECKED = 2
"""Images of the batch that are compared with float64: each image of a batch is computed alone."""


def parse_model(name: str) -> tuple[str, dict[str, Any]]:
    """"DiT-S/2" or "DiT-S/2:depth=3,hidden_size=96": one of the paper's models, other numbers for some arguments.

    Raises:
        ValueError: an unknown model or an argument that is no number.
    """
    base, _, given = name.partition(":")
    if base not in DiT_models:
        raise ValueError(f"`--model` must be one of {', '.join(DiT_models)}, or such a name and :depth=3, got {name!r}")
    arguments: dict[str, Any] = {}
    for item in filter(None, given.split(",")):
        key, _, value = item.partition("=")
        try:
            arguments[key] = int(value)
        except ValueError:
            raise ValueError(f"`--model` must give numbers, as DiT-S/2:depth=3, got {item!r}") from None
    return base, arguments


@lru_cache(maxsize=1)
def weights(name: str, image_size: int, seed: int, device: str) -> DiT:
    """Drawn once for all that are compared: a large model takes seconds to draw and to bring to a GPU."""
    base, arguments = parse_model(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return enliven(DiT_models[base](input_size=image_size, **arguments)).eval().to(device)


@dataclass(frozen=True)
class Recipe:
    """A model with live random weights and a batch for it, the same in every process."""

    name: str
    batch: int
    dtype: str = "float32"
    device: str = "cpu"
    image_size: int = 32
    seed: int = 0

    def model(self, dtype: torch.dtype | None = None) -> DiT:
        """In evaluation mode, on the device; its weights are drawn in float32 and then rounded. The caller's own."""
        drawn = weights(self.name, self.image_size, self.seed, self.device)
        return copy.deepcopy(drawn).to(dtype or getattr(torch, self.dtype))

    def inputs(self) -> tuple[Tensor, Tensor, Tensor]:
        """x (N, C, H, W) in the dtype, t and y (N,)."""
        _, arguments = parse_model(self.name)
        channels, classes = arguments.get("in_channels", 4), arguments.get("num_classes", 1000)
        generator = torch.Generator().manual_seed(self.seed + 1)
        x = torch.randn(self.batch, channels, self.image_size, self.image_size, generator=generator)
        t = torch.randint(0, 1000, (self.batch,), generator=generator)
        y = torch.randint(0, classes, (self.batch,), generator=generator)
        return x.to(self.device, getattr(torch, self.dtype)), t.to(self.device), y.to(self.device)

    def shapes(self) -> DiT:
        """The model without memory, for its sizes."""
        base, arguments = parse_model(self.name)
        with torch.device("meta"):
            return DiT_models[base](input_size=self.image_size, **arguments)

    def flops(self) -> int:
        """Of a forward of the batch: two a multiply-add, by the paper's count."""
        return 2 * self.batch * count_macs(self.shapes(), self.image_size, self.image_size)

    def dims(self) -> dict[str, int]:
        config: dict[str, Any] = self.shapes().config
        tokens = (self.image_size // config["patch_size"]) ** 2
        return {
            "batch": self.batch, "tokens": tokens, "depth": config["depth"], "width": config["hidden_size"],
            "heads": config["num_heads"],
        }  # fmt: skip

    def case(self) -> str:
        return f"N={self.batch}, {self.image_size}x{self.image_size} latent"

    @torch.no_grad()
    def exact(self, model: DiT) -> Tensor:
        """What `model` should answer for the first images, in float64."""
        x, t, y = (tensor[:CHECKED] for tensor in self.inputs())
        with use_backend("reference"), no_tf32():
            return copy.deepcopy(model).double()(x.double(), t, y)


@contextmanager
def kernels_of(backend: str) -> Iterator[None]:
    """`backend` for the ops that have it, and `auto` for those that do not; where none has, it is asked for all."""
    without = [name for name in NAMES if backend in ("cpu", "cuda") and not has_kernel(name, backend)]
    others = {name: "auto" for name in without} if len(without) < len(NAMES) else {}
    with use_backend(backend, **others):
        yield


def has_kernel(name: str, backend: str) -> bool:
    return backend in OPS[name].native or (backend == "cpu" and OPS[name].cpu_module is not None)
