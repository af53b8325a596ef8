# SPDX-License-Identifier: Apache-2.0
"""What a stranger's forward takes, and what of it reaches which part.

Blocks of the lineage are called as (x, c), (x, c, rope), (x, c, mask=None) and so on. A fused block can stand in only
if it knows where the rest goes. That is found by experiment: a copy of the block whose attention and MLP are stand-ins
is called with marked objects, which nothing but a hand-over survives.
"""

import inspect
from collections.abc import Hashable
from typing import Any, NamedTuple

import torch
from torch import nn

from .selfcheck import Marked, StandIn, copied, in_short, kind, randomise, stand_in


class Signature(NamedTuple):
    """Names of a forward's arguments after self, and the defaults of those that have one, as pairs."""

    names: tuple[str, ...]
    defaults: tuple[tuple[str, Any], ...]

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any] | None:
        """Every argument's value by name; None for a call that does not fit."""
        if len(args) > len(self.names):
            return None
        given = dict(zip(self.names, args, strict=False))
        if any(k in given or k not in self.names for k in kwargs):
            return None
        bound = {**dict(self.defaults), **given, **kwargs}
        return bound if len(bound) == len(self.names) else None

    def at_default(self, bound: dict[str, Any], first: int, known: tuple[str, ...]) -> bool:
        """Whether the arguments from number `first` on, but for the known ones, have their default values."""
        defaults = dict(self.defaults)
        rest = [(bound[name], defaults.get(name)) for name in self.names[first:] if name not in known]
        return all(isinstance(v, int | float | str | None) and v == default for v, default in rest)


def signature(module: nn.Module) -> Signature | str:
    """Of the module's own forward; a string where it takes a variable number of arguments."""
    names, defaults = [], []
    for p in list(inspect.signature(type(module).forward).parameters.values())[1:]:
        if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
            return f"its forward takes any arguments (`{p}`), so what they do is not known"
        names.append(p.name)
        if p.default is not p.empty:
            if not isinstance(p.default, int | float | str | None):
                return f"the default of its argument `{p.name}` is a {type(p.default).__name__}"
            defaults.append((p.name, p.default))
    return Signature(tuple(names), tuple(defaults))


Handed = tuple[tuple[Hashable, ...], tuple[tuple[str, Hashable], ...]]
"""What a part gets beside the tokens: positional and keyword, each ("argument", name) or ("value", constant)."""


class Route(NamedTuple):
    """Where arguments go: `carried` are those that are handed over, to `parts` (name, what it gets)."""

    carried: tuple[str, ...]
    parts: tuple[tuple[str, Handed], ...]


_routes: dict[Hashable, Route | str] = {}


def route(module: nn.Module, parts: tuple[str, ...], width: int, found: Signature) -> Route | str:
    """Find where the arguments after the first two go; optional ones that go nowhere known are not `carried`."""
    key = (parts, width, kind(module))  # a model has many blocks of few kinds
    if key not in _routes:
        _routes[key] = _route(module, parts, width, found)
    return _routes[key]


def _route(module: nn.Module, parts: tuple[str, ...], width: int, found: Signature) -> Route | str:
    optional = [name for name in found.names[2:] if name in dict(found.defaults)]
    required = [name for name in found.names[2:] if name not in optional]
    best = _probe(module, parts, width, required)
    for name in optional:
        if isinstance(best, Route):
            more = _probe(module, parts, width, [*best.carried, name])
            best = best if isinstance(more, str) else more
    return best


def _probe(module: nn.Module, parts: tuple[str, ...], width: int, names: list[str]) -> Route | str:
    device = torch.device("meta")  # no numbers are needed
    x, c = (torch.ones(shape, dtype=torch.float64, device=device) for shape in ((2, 6, width), (2, width)))
    try:
        twin = copied(module)
        for part in parts:
            stand_in(twin, part)
        randomise(twin, device)
        with torch.no_grad():
            twin(x, c, **{name: Marked(name) for name in names})
    except Exception as error:  # it cannot be copied, or a stranger's forward used what it was given
        using = f" with marks for {', '.join(names)}" if names else ""
        return f"its forward could not be followed{using} ({in_short(error)})"
    found, handed = [], set()
    for part in parts:
        child = getattr(twin, part)
        assert isinstance(child, StandIn)
        if "called_with" not in vars(child):
            return f"its forward does not call its `{part}`"
        args, kwargs = vars(child)["called_with"]
        given = [*args, *kwargs.values()]
        if not all(isinstance(v, Marked | int | float | str | None) for v in given):
            return f"its `{part}` is given something that its forward made"
        handed |= {v.name for v in given if isinstance(v, Marked)}
        found.append((part, (tuple(map(_item, args)), tuple((k, _item(v)) for k, v in kwargs.items()))))
    if missing := [name for name in names if name not in handed]:
        return f"its forward takes `{missing[0]}`, which does not go to its {' or '.join(parts)}"
    return Route(tuple(names), tuple(found))


def _item(value: Any) -> tuple[str, Any]:
    return ("argument", value.name) if isinstance(value, Marked) else ("value", value)


def handed_over(handed: Handed, bound: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """The arguments of a part in this call."""
    args: Any
    kwargs: Any
    args, kwargs = handed
    values = [bound[v] if kind == "argument" else v for kind, v in args]
    return values, {k: bound[v] if kind == "argument" else v for k, (kind, v) in kwargs}
