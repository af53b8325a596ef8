# SPDX-License-Identifier: Apache-2.0
"""Does a replacement compute what the module computes? Both are run on random weights and inputs and compared.

Attributes tell how a block is built, not what its forward does with them: forks chunk the modulation in another order,
gate without a residual, normalise after. And a fresh adaLN-Zero block is the identity, so that anything resembling one
agrees with it. So a copy of the module gets random weights, in float64, and runs under its own forward and under the
replacement's, with and without dropout; outputs and all gradients are compared. The module itself, the random number
generators and the mode of autograd are left as they are.
"""

import copy
import itertools
import math
import zlib
from collections.abc import Callable, Hashable
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from dit_fast.ops import use_backend
from dit_fast.ops._core.checks import without_autocast

Call = tuple[tuple[Any, ...], dict[str, Any]]
Prepare = Callable[[nn.Module, torch.device], list[Call]]
"""Of a copy of the module, which it may alter, the calls to compare: positional and keyword arguments of each. Tensors
are float64 on the device given. Where forwards need more than tensors and numbers, stand-ins take any object."""

TOLERANCE = 32 * torch.finfo(torch.float32).eps
"""Of the largest value. Float32, since a float64 module may compute parts (a norm, a rotary table) in float32; another
formula differs by far more: GELU's two forms, the closest pair known, by 1e-4."""


class Marked:
    """An argument that can be handed over and nothing else."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return self.name


class StandIn(nn.Module):
    """In place of a part that both forwards call alike: cheap, nonlinear, mixes channels and tokens, and depends on
    which part it is and on what it is given beside the tokens."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        vars(self)["called_with"] = args, kwargs
        named = (*enumerate(args), *sorted(kwargs.items()))
        given = [(name, value) for name, value in named if not isinstance(value, Tensor)]
        factor = 1 + zlib.crc32(repr((vars(self)["part"], given)).encode()) / 2**32
        return x.roll(1, -1).sin() * factor + x.roll(1, -2) * x


def stand_in(module: nn.Module, name: str) -> None:
    """Replace a child of a copied module, keeping its attributes, which the forward may read."""
    child = getattr(module, name)
    child.__class__ = type(type(child).__name__, (StandIn, type(child)), {})
    vars(child)["part"] = name


def why_differs(
    module: nn.Module,
    cls: type[nn.Module],
    prepare: Prepare | None,
    checked: dict[Hashable, str | None],
) -> str | None:
    """None if `cls` computes what the module does, else why it cannot replace it.

    `checked` holds the answers for like modules: a model has many blocks and few kinds of them.
    """
    if prepare is None:
        return None
    key = (cls, prepare, kind(module))
    if key not in checked:
        checked[key] = _why_differs(module, cls, prepare)
    return checked[key]


def _why_differs(module: nn.Module, cls: type[nn.Module], prepare: Prepare) -> str | None:
    device = _device(module)
    devices = [device] if device.type not in ("cpu", "meta") else []
    with (
        torch.random.fork_rng(devices, device_type=device.type if devices else "cuda"),
        torch.inference_mode(False),
        torch.enable_grad(),
        without_autocast(device.type),
        use_backend("reference"),
    ):
        try:
            twin = copied(module)
            calls = prepare(twin, device)
            randomise(twin, device)
            original = type(twin)
            for (args, kwargs), training in itertools.product(calls, (False, True)):
                twin.train(training)
                twin.__class__ = original
                own = _run(twin, args, kwargs)
                twin.__class__ = cls
                new = _run(twin, args, kwargs)
                difference = max(_difference(*both) for both in zip(own, new, strict=True))
                if difference > TOLERANCE:
                    mode = " in training mode" if training else ""
                    return f"its forward computes something else{mode} (relative difference {difference:.2g})"
        except Exception as error:  # whatever a stranger's forward raises is its reason, and patch goes on
            return f"its forward could not be checked ({in_short(error)})"
    return None


def in_short(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def _device(module: nn.Module) -> torch.device:
    """The module's, unless it has no numbers (meta) or no float64 (mps)."""
    device = next((t.device for t in (*module.parameters(), *module.buffers())), torch.device("cpu"))
    return device if device.type in ("cpu", "cuda") else torch.device("cpu")


def copied(module: nn.Module) -> nn.Module:
    """A copy that shares the parameters, and the random ones to come take their place; hooks are left behind."""
    held = [v for part in module.modules() for v in vars(part).values()]
    tensors = {id(t): t for t in (*module.parameters(), *module.buffers(), *held) if isinstance(t, Tensor)}
    twin = copy.deepcopy(module, tensors)
    for part in twin.modules():
        for name, value in vars(part).items():
            if "_hooks" in name and isinstance(value, dict):
                vars(part)[name] = type(value)()
    return twin


def randomise(twin: nn.Module, device: torch.device) -> None:
    """Float64 values for all parameters but those of stand-ins, each tensor once; copies of all buffers."""
    done: dict[int, nn.Parameter] = {}
    hidden = {id(part) for child in twin.modules() if isinstance(child, StandIn) for part in child.modules()}
    for part in twin.modules():
        if id(part) in hidden:
            continue
        for name, value in part._parameters.items():
            if value is None:
                continue
            if id(value) not in done:
                done[id(value)] = nn.Parameter(_values(value, device, len(done)))
            part._parameters[name] = done[id(value)]
        for name, buffer in part._buffers.items():
            if buffer is not None:
                values = torch.zeros_like(buffer, device=device) if buffer.is_meta else buffer.detach().clone()
                part._buffers[name] = values.to(device, torch.float64 if values.is_floating_point() else None)


def _values(like: Tensor, device: torch.device, index: int) -> Tensor:
    if device.type == "meta":
        return torch.empty(like.shape, dtype=torch.float64, device=device)
    generator = torch.Generator().manual_seed(index)
    pool = torch.randn(65537, dtype=torch.float64, device="cpu", generator=generator)  # a prime: rows and chunks differ
    size = like.shape[1:].numel() ** -0.5 if like.dim() > 1 else 0.5
    return (pool.repeat(like.numel() // len(pool) + 1)[: like.numel()] * size).view(like.shape).to(device)


def _run(twin: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs, and the gradients of all inputs and parameters for a fixed cotangent."""
    torch.manual_seed(0)
    args = tuple(a.detach().requires_grad_() if _is_float(a) else a for a in args)
    kwargs = {k: a.detach().requires_grad_() if _is_float(a) else a for k, a in kwargs.items()}
    given = twin(*args, **kwargs)
    outputs = [o for o in (given if isinstance(given, tuple | list) else (given,)) if isinstance(o, Tensor)]
    leaves = [a for a in (*args, *kwargs.values(), *twin.parameters()) if _is_float(a) and a.requires_grad]
    cotangents = [torch.randn_like(o) for o in outputs]
    found = torch.autograd.grad(outputs, leaves, cotangents, allow_unused=True)
    grads = [torch.zeros_like(leaf) if g is None else g for leaf, g in zip(leaves, found, strict=True)]
    return [o.detach() for o in outputs], grads


def _difference(own: list[Tensor], new: list[Tensor]) -> float:
    """The largest, relative to the largest value: some gradients are 0 but for rounding (of a bias of all keys)."""
    if [(t.shape, t.dtype) for t in own] != [(t.shape, t.dtype) for t in new]:
        return math.inf
    largest = max((float(t.abs().max()) for t in own if t.numel()), default=0.0)
    differences = [float((a - b).abs().max()) for a, b in zip(own, new, strict=True) if a.numel()]
    if not all(map(math.isfinite, differences)):
        return math.inf
    return max(differences, default=0.0) / max(largest, 1e-12)


def _is_float(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def kind(module: nn.Module) -> Hashable:
    """All that two modules must share for one answer to hold for both."""
    found: list[Hashable] = []
    for name, part in module.named_modules():
        shapes = tuple((k, None if v is None else (v.shape, v.device)) for k, v in part._parameters.items())
        found.append((name, type(part), shapes, tuple(_setting(k, v) for k, v in vars(part).items())))
    return tuple(found)


def _setting(name: str, value: object) -> Hashable:
    """An attribute by value if it is simple, or one that is like no other."""
    if name in ("_parameters", "_modules", "training") or "_hooks" in name:
        return name
    if isinstance(value, int | float | str | torch.Size | torch.dtype | type | FunctionType | None):
        return name, value
    if isinstance(value, tuple | list) and all(isinstance(v, int | float | str) for v in value):
        return name, tuple(value)
    if isinstance(value, dict | set) and not value:
        return name
    return name, object()
