# SPDX-License-Identifier: Apache-2.0
"""`patch` and `unpatch`: the forwards of a model's blocks replaced in place, and put back.

A replaced module keeps its parameters, buffers, submodules, hooks and name; only its class changes, to a subclass of
its own (`derive`) whose `forward` calls `dit_fast.ops`. So isinstance, wrapping policies by class, the optimizer,
state_dict and deepcopy go on as before, and putting the class back restores exactly what was.

A recipe says for one module what to do with it. Being recognised by its attributes is not enough: before a module is
replaced, both forwards are run on random weights and compared (`selfcheck.py`).
"""

import importlib
import logging
import sys
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import nn

from . import selfcheck

log = logging.getLogger("dit_fast")

OTHERS = {"diffusers": "dit_fast.integrations.diffusers.recipes"}
"""Recipes for a package's models, loaded by `patch` where the package has been imported, and only there."""


@dataclass(frozen=True)
class Replacement:
    """A class for a module, and how to see that it computes the same.

    Args:
        cls: a class from `derive`.
        fused: what runs in one kernel now, for the report.
        prepare: the calls that must give the same under both forwards (see selfcheck.py); the same function object
            for like modules. None: not checked.
    """

    cls: type[nn.Module]
    fused: tuple[str, ...]
    prepare: selfcheck.Prepare | None = None


Answer = None | str | Replacement | list[Replacement]
Recipe = Callable[[nn.Module], Answer]
"""None: no such module. A string: it looked like one, and why it is left alone. Several replacements: the first that
computes the same as the module is taken."""

RECIPES: list[Recipe] = []


def recipe(function: Recipe) -> Recipe:
    """Registers a recipe. The first that wants to replace a module does."""
    RECIPES.append(function)
    return function


class Replaced(NamedTuple):
    name: str
    cls: str
    fused: tuple[str, ...]


class Skipped(NamedTuple):
    name: str
    cls: str
    why: str


@dataclass
class Report:
    """What `patch` or `unpatch` did, module by module; printed, a table."""

    verb: str
    replaced: list[Replaced] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)

    def __str__(self) -> str:
        """Like modules (numbers in their names aside) share a line."""
        lines = [f"{self.verb} {len(self.replaced)} modules, left {len(self.skipped)} alone"]
        rows = [(r.name, r.cls, self.verb, ", ".join(r.fused)) for r in self.replaced]
        rows += [(s.name, s.cls, "left", s.why) for s in self.skipped]
        patterns = (".".join("*" if piece.isdigit() else piece for piece in row[0].split(".")) for row in rows)
        groups = Counter((pattern or "(model)", *row[1:]) for pattern, row in zip(patterns, rows, strict=True))
        table = [(f"{key[0]} x{count}" if count > 1 else key[0], *key[1:]) for key, count in groups.items()]
        widths = [max(len(row[i]) for row in table) for i in range(3)] if table else []
        for row in table:
            lines.append("  ".join([*(row[i].ljust(widths[i]) for i in range(3)), row[3]]).rstrip())
        return "\n".join(lines)


def patch(model: nn.Module) -> Report:
    """Speed up, in place, the blocks of `model` that are known: same numbers beyond rounding, same state_dict.

    Parameters, buffers, submodules, hooks and the optimizer's references to them stay. Wrap (DDP, FSDP, torch.compile)
    afterwards. What a fused forward would bypass (a norm, an activation) may be hooked, replaced or switched to dropout
    later: that call then goes through the part itself.

    Args:
        model: any module tree.

    Returns:
        A report: `replaced` names each module, its class and what is fused in it; `skipped` names those that looked
        alike and why they were left alone. Nothing replaced is logged as a warning, with the reasons.

    Raises:
        ValueError: `model` is no torch.nn.Module.
    """
    _check_model("patch", model)
    for package, recipes in OTHERS.items():
        if package in sys.modules:
            importlib.import_module(recipes)
    report = Report("replaced")
    checked: dict[Hashable, str | None] = {}
    for name, module, answer in _answers(model):
        kind = type(module).__name__
        if isinstance(answer, str):
            report.skipped.append(Skipped(name, kind, answer))
            continue
        candidates = answer if isinstance(answer, list) else [answer]
        reason = None
        for candidate in candidates:
            reason = selfcheck.why_differs(module, candidate.cls, candidate.prepare, checked)
            if reason is None:
                module.__class__ = candidate.cls
                report.replaced.append(Replaced(name, kind, candidate.fused))
                break
        if reason is not None:
            report.skipped.append(Skipped(name, kind, reason))
    settled = {ALREADY, OWN}
    if not report.replaced and not any(s.why in settled for s in report.skipped):
        reasons = str(report) if report.skipped else "no module of it looks like a block that is known"
        log.warning("patch: nothing of %s was replaced: %s", type(model).__name__, reasons)
    return report


def unpatch(model: nn.Module) -> Report:
    """Put back the classes that `patch` replaced; on a model that is not patched, it says so in the report.

    Raises:
        ValueError: `model` is no torch.nn.Module.
    """
    _check_model("unpatch", model)
    report = Report("restored")
    for name, module in model.named_modules():
        cls = type(module)
        if _is_derived(cls):
            module.__class__ = cls._fast_original
            report.replaced.append(Replaced(name, cls.__name__, ()))
        elif any(_is_derived(base) for base in cls.__mro__):
            report.skipped.append(Skipped(name, cls.__name__, f"wrapped after patch: {cls.__name__} derives from it"))
    if not report.replaced and not report.skipped:
        report.skipped.append(Skipped("", type(model).__name__, "not patched"))
    return report


ALREADY = "already patched"
OWN = "fast already: dit_fast's own"


def _answers(model: nn.Module) -> Iterator[tuple[str, nn.Module, str | Replacement | list[Replacement]]]:
    own: list[str] = []
    for name, module in list(model.named_modules()):
        if any(name.startswith(f"{prefix}." if prefix else "") for prefix in own):
            continue
        if any(_is_derived(base) for base in type(module).__mro__):
            yield name, module, ALREADY
        elif type(module).__module__.partition(".")[0] == "dit_fast":
            own.append(name)
            yield name, module, OWN
        else:
            answer = _ask(module)
            if answer is not None and "forward" in vars(module):
                answer = "its forward was replaced on the instance, which a class cannot override"
            if answer is not None:
                yield name, module, answer


def _ask(module: nn.Module) -> Answer:
    """The first replacement, or else the first reason."""
    if isinstance(module, torch.jit.ScriptModule):
        return None
    why: str | None = None
    for one in RECIPES:
        answer = one(module)
        if isinstance(answer, str):
            why = why or answer
        elif answer is not None:
            return answer
    return why


def _check_model(function: str, model: object) -> None:
    if not isinstance(model, nn.Module):
        parts = [k for k in ("transformer", "model") if isinstance(getattr(model, k, None), nn.Module)]
        hint = f"; pass its `{parts[0]}`" if parts else ""
        raise ValueError(f"{function}: `model` must be a torch.nn.Module, got {type(model).__name__}{hint}")


_derived: dict[Hashable, type[nn.Module]] = {}


def derive(original: type[nn.Module], mixin: type, **constants: Hashable) -> type[nn.Module]:
    """The subclass of `original` whose forward is `mixin`'s, under `original`'s name.

    Args:
        original: a module's class.
        mixin: a class at the top level of a module, with a `forward` that may call `super().forward`.
        constants: class attributes for the mixin; hashable, and picklable by value.

    The same arguments give the same class. Pickled modules (torch.save(model)) name `original` and `mixin` and are
    patched when loaded, so loading needs dit_fast.
    """
    key = (original, mixin, tuple(constants.items()))
    if key in _derived:
        return _derived[key]
    namespace: dict[str, Any] = {
        **constants,
        "__module__": original.__module__,
        "__qualname__": original.__qualname__,
        "__doc__": original.__doc__,
        "__reduce_ex__": _reduce,
        "_fast_original": original,
        "_fast_recipe": (mixin, tuple(constants.items())),
    }
    metaclass: Any = type(original)
    _derived[key] = metaclass(original.__name__, (mixin, original), namespace)
    return _derived[key]


def _is_derived(cls: type) -> bool:
    return "_fast_recipe" in vars(cls)


def _reduce(self: nn.Module, protocol: Any) -> tuple[Any, ...]:
    """As the original class would be reduced, but for the class, which pickle would look up by its name."""
    cls: Any = next(base for base in type(self).__mro__ if _is_derived(base))
    return _rebuild, (cls._fast_original, *cls._fast_recipe), self.__getstate__()


def _rebuild(original: type[nn.Module], mixin: type, constants: tuple[tuple[str, Hashable], ...]) -> nn.Module:
    cls: Any = derive(original, mixin, **dict(constants))
    return cls.__new__(cls)
