# SPDX-License-Identifier: Apache-2.0
"""Formulas of the ops for PyTorch's FlopCounterMode, which would count an operator it does not know as nothing.

Importing `torch.utils.flop_counter` takes seconds (it loads the compiler), so formulas wait here until someone does.
"""

import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

COUNTER = "torch.utils.flop_counter"

Formula = Callable[..., int]
"""From the operator's arguments, shapes in place of tensors, to floating point operations, 2 a multiply-add."""

_waiting: list[tuple[Any, Formula]] = []


def register(packet: Any, formula: Formula) -> None:
    """Have FlopCounterMode count `packet` (torch.ops.dit_fast.<name>), now or when its module is imported."""
    _waiting.append((packet, formula))
    if COUNTER in sys.modules:
        _register_waiting(sys.modules[COUNTER])
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def _register_waiting(counter: ModuleType) -> None:
    while _waiting:
        packet, formula = _waiting.pop()
        counter.register_flop_formula(packet)(lambda *shapes, f=formula, out_shape=None, **named: f(*shapes, **named))


class _Finder(MetaPathFinder):
    """Steps aside at the import of the counter's module, and registers the formulas when that is done."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != COUNTER:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            _register_waiting(module)

        setattr(spec.loader, "exec_module", exec_module)  # noqa: B010 (mypy forbids an assignment to a method)
        return spec
