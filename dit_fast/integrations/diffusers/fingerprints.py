# SPDX-License-Identifier: Apache-2.0
"""Which forwards of diffusers are known. `known.py` holds a fingerprint of each, and the versions it was seen in.

A fingerprint is a hash of the syntax tree: names, constants and structure, without docstrings, comments, annotations
and layout, so that it is the same on every Python. After reading what a new version of diffusers changed,

    python -m dit_fast.integrations.diffusers.fingerprints

adds the installed version to `known.py`.
"""

import ast
import hashlib
import importlib
import inspect
import textwrap
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from .known import KNOWN
from .table import Fused

IGNORED = {"annotation", "returns", "ctx", "kind", "type_comment", "type_params", "type_ignores"}


@cache
def why_unknown(cls: Any, row: Fused) -> str | None:
    """Why this class's forward, or what the replacement relies on, is not as known; None if it is."""
    try:
        found = fingerprint(cls, row)
    except (OSError, TypeError, SyntaxError, AttributeError, ImportError) as error:
        return f"its forward cannot be read ({type(error).__name__}: {error})"
    if found in KNOWN.get(row.name, {}):
        return None
    return f"its forward is not one of those known (diffusers {version()})"


def fingerprint(cls: type, row: Fused) -> str:
    """Of the class's forward and of what the row relies on."""
    functions = [getattr(cls, "forward"), *(_relied(cls, name) for name in row.relies)]  # noqa: B009
    return hashlib.sha256("\n".join(map(_canonical_source, functions)).encode()).hexdigest()[:16]


def _relied(cls: type, name: str) -> Callable[..., Any]:
    if "." not in name:
        return getattr(cls, name)
    module, owner, method = name.rsplit(".", 2)
    return getattr(getattr(importlib.import_module(f"diffusers.models.{module}"), owner), method)


def _canonical_source(function: Callable[..., Any]) -> str:
    source = textwrap.dedent(inspect.getsource(inspect.unwrap(function)))
    return _canonical(ast.parse(source).body[0])


def _canonical(node: object) -> str:
    """Fields that are empty are left out, since versions of Python differ in them."""
    if isinstance(node, list):
        return "[" + " ".join(map(_canonical, node)) + "]"
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = {k: v for k, v in ast.iter_fields(node) if k not in IGNORED and v is not None and v != []}
    if isinstance(node, ast.FunctionDef) and ast.get_docstring(node) is not None:
        fields["body"] = node.body[1:]
    return f"({type(node).__name__} " + " ".join(f"{k}={_canonical(v)}" for k, v in sorted(fields.items())) + ")"


def version() -> str:
    return importlib.import_module("diffusers").__version__


def installed() -> dict[str, str]:
    """Fingerprints by row, of the installed version; rows that it does not have are left out."""
    from .recipes import TABLE

    found = {}
    for name, row in TABLE.items():
        module, cls = name.rsplit(".", 1)
        try:
            found[name] = fingerprint(getattr(importlib.import_module(f"diffusers.models.{module}"), cls), row)
        except (ImportError, AttributeError):
            continue
    return found


def listing() -> str:
    """`known.py` with the installed version added."""
    lines = [
        "# SPDX-License-Identifier: Apache-2.0",
        '"""Forwards that are known: fingerprint -> versions of diffusers. `fingerprints.py` writes this file."""',
        "",
        "KNOWN: dict[str, dict[str, tuple[str, ...]]] = {",
    ]
    from .recipes import TABLE

    new = installed()
    for name in sorted(TABLE):
        prints = {k: set(v) for k, v in KNOWN.get(name, {}).items()}
        if name in new:
            prints.setdefault(new[name], set()).add(version())
        lines.append(f'    "{name}": {{')
        for key, versions in sorted(prints.items(), key=lambda item: sorted(item[1], key=_order)):
            quoted = ", ".join(f'"{v}"' for v in sorted(versions, key=_order))
            lines.append(f'        "{key}": ({quoted}{"," if len(versions) == 1 else ""}),')
        lines.append("    },")
    return "\n".join([*lines, "}", ""])


def _order(text: str) -> tuple[int, ...]:
    return tuple(int(piece) if piece.isdigit() else 0 for piece in text.split("."))


if __name__ == "__main__":
    Path(__file__).with_name("known.py").write_text(listing())
