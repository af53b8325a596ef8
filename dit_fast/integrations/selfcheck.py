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
from collections.abc import Callable, Hashable
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


class StandIn(nn.Module):
    """In place of a part that both forwards call alike: cheap, nonlinear, and it mixes channels and tokens."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        vars(self)["called_with"] = args, kwargs
        return x.roll(1, -1).sin() * 2 + x.roll(1, -2) * x


def stand_in(module: nn.Module, name: str) -> None:
    """Replace a child of a copied module, keeping its attributes, which the forward may read."""
    child = getattr(module, name)
    child.__class__ = type(type(child).__name__, (StandIn, type(child)), {})


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
    key = (cls, prepare, _kind(module))
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
                difference = max(map(_difference, own, new))
                if len(own) != len(new) or difference > TOLERANCE:
                    mode = " in training mode" if training else ""
                    return f"its forward computes something else{mode} (relative difference {difference:.2g})"
        except Exception as error:  # whatever a stranger's forward raises is its reason, and patch goes on
            return f"its forward could not be checked ({type(error).__name__}: {str(error).splitlines()[:1]})"
    return None


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


def _run(twin: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """Outputs and the gradients of all inputs and parameters, for a fixed cotangent."""
    torch.manual_seed(0)
    args = tuple(a.detach().requires_grad_() if _is_float(a) else a for a in args)
    kwargs = {k: a.detach().requires_grad_() if _is_float(a) else a for k, a in kwargs.items()}
    given = twin(*args, **kwargs)
    outputs = [o for o in (given if isinstance(given, tuple | list) else (given,)) if isinstance(o, Tensor)]
    leaves = [a for a in (*args, *kwargs.values(), *twin.parameters()) if _is_float(a) and a.requires_grad]
    loss = sum(((o * torch.randn_like(o)).sum() for o in outputs), start=torch.zeros(()))
    grads = torch.autograd.grad(loss, leaves, allow_unused=True)
    return [*outputs, *(torch.zeros(()) if g is None else g for g in grads)]


def _difference(own: Tensor, new: Tensor) -> float:
    if own.shape != new.shape or own.dtype != new.dtype:
        return math.inf
    if own.numel() == 0:
        return 0.0
    own, new = own.detach(), new.detach()
    difference = float((own - new).abs().max() / own.abs().max().clamp_min(1e-12))
    return difference if math.isfinite(difference) else math.inf


def _is_float(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _kind(module: nn.Module) -> Hashable:
    """All that two modules must share for one answer to hold for both."""
    parts: list[Hashable] = []
    for name, part in module.named_modules():
        shapes = tuple((k, None if v is None else (v.shape, v.device)) for k, v in part._parameters.items())
        parts.append((name, type(part), shapes, tuple(_setting(k, v) for k, v in vars(part).items())))
    return tuple(parts)


def _setting(name: str, value: object) -> Hashable:
    if name in ("_parameters", "_modules", "training") or "_hooks" in name:
        return name
    if isinstance(value, int | float | str | bool | torch.Size | torch.dtype | None):
        return name, value
    if isinstance(value, tuple | list) and all(isinstance(v, int | float | str) for v in value):
        return name, tuple(value)
    if isinstance(value, dict | list | set) and not value:
        return name
    return name, id(value)
