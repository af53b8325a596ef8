# SPDX-License-Identifier: Apache-2.0
"""What a sampler has to know of a model, and which of its accelerations a model allows."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dit_fast import ops
from dit_fast.models import DiT


class Surface(NamedTuple):
    """channels are the model's, in and out; `size` (H, W) is the one it was made for, where that is known."""

    in_channels: int
    out_channels: int
    num_classes: int
    has_null: bool
    size: tuple[int, int] | None
    dtype: torch.dtype
    device: torch.device


def surface_of(model: Callable[..., Tensor], **given: Any) -> Surface:
    """What is `given`, and where that is None what the model's attributes say, named as a DiT's.

    given: in_channels, num_classes, learn_sigma, device, dtype.
    """
    inner = unwrapped(model)
    is_module = isinstance(inner, nn.Module)
    if is_module and inner.training:
        raise ValueError("Sampler: `model` must be in evaluation mode, got one in training: model.eval()")
    embedder = getattr(inner, "y_embedder", None)
    found: dict[str, Any] = {name: getattr(inner, name, None) for name in ("in_channels", "num_classes", "learn_sigma")}
    if found["num_classes"] is None:
        found["num_classes"] = getattr(embedder, "num_classes", None)
    for name in found:
        found[name] = given[name] if given[name] is not None else found[name]
        if found[name] is None:
            raise ValueError(f"Sampler: `{name}` must be given: {type(inner).__name__} has no attribute that says it")
    weight = next((p for p in inner.parameters() if p.is_floating_point()), None) if is_module else None
    device, dtype = (torch.device("cpu"), torch.float32) if weight is None else (weight.device, weight.dtype)
    size = None
    if isinstance(inner, DiT):
        size = inner.grid[0] * inner.patch_size, inner.grid[1] * inner.patch_size
    return Surface(
        in_channels=found["in_channels"],
        out_channels=found["in_channels"] * (2 if found["learn_sigma"] else 1),
        num_classes=found["num_classes"],
        has_null=getattr(embedder, "dropout_prob", 1) > 0,
        size=size,
        dtype=given["dtype"] or dtype,
        device=torch.device(given["device"] or device),
    )


def unwrapped(model: Any) -> Any:
    """The model inside of torch.compile's and DistributedDataParallel's wrappers."""
    while True:
        inner = getattr(model, "_orig_mod", None) or getattr(model, "module", None)
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def why_whole(model: Any) -> str | None:
    """Why a model cannot be called in parts; None where it can."""
    if not isinstance(model, DiT):
        return f"{type(model).__name__} is not a dit_fast DiT"
    if type(model).forward is not DiT.forward or "forward" in vars(model):
        return f"{type(model).__name__} has a forward of its own"
    if model._forward_hooks or model._forward_pre_hooks:
        return "hooks on the model watch its forward"
    if any(type(p).__name__ == "DTensor" for p in model.parameters()):
        return "its weights are sharded"
    return None


def why_uncaptured(model: Any, device: torch.device, asked: bool | None) -> str | None:
    """Why a model's steps are not captured in a CUDA graph; None where they are."""
    if device.type != "cuda":
        return f"the model is on {device.type}"
    if torch.is_autocast_enabled("cuda"):
        return "autocast keeps copies of weights outside of the graph"
    if asked is None and not isinstance(model, DiT):
        return f"{type(model).__name__} may wait for the device or have graphs of its own; cuda_graph=True tries"
    return None


def stamp(model: Any, device: torch.device) -> tuple[Any, ...]:
    """Changes where buffers and graphs of an earlier call do not hold: with weights that were replaced (those written
    in place are read as they are), another choice of kernels, and autocast."""
    backends = tuple(ops.current_backend(op) for op in (None, *ops.NAMES))
    cast = torch.is_autocast_enabled(device.type) and torch.get_autocast_dtype(device.type)
    tensors = [*model.parameters(), *model.buffers()] if isinstance(model, nn.Module) else []
    return backends, cast, tuple((t.data_ptr(), t.dtype, t.shape) for t in tensors)
