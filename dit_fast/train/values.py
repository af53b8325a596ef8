# SPDX-License-Identifier: Apache-2.0
"""Values of a configuration, read by the type a field has: from Python, from YAML, or from a flag's text."""

import difflib
import os
from collections.abc import Iterable
from types import NoneType, UnionType
from typing import Any, Literal, NoReturn, Union, get_args, get_origin

import yaml

BOOLEANS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
NOTHING = ("none", "null", "")
NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


def fail(name: str, expected: str, got: Any, hint: str = "") -> NoReturn:
    raise ValueError(f"train: `{name}` must be {expected}, got {got!r}{hint}")


def nearest(word: str, known: Iterable[str]) -> str:
    """"; the nearest known one is `...`", or nothing where none is near."""
    found = difflib.get_close_matches(word, list(known), 1, cutoff=0.5)
    return f"; the nearest known one is {found[0]}" if found else ""


def read(name: str, hint: Any, value: Any) -> Any:
    """`value` as the type `hint`.

    Args:
        hint: bool, int, float, str, a Literal, a tuple of fixed length, dict, None, or a union of these.
        value: of that type, or text that says it: "1e-4", "400_000", "true", "none", "0.9, 0.99". A float that is a
            whole number is an int too (YAML has 4.0e+5 for text that means 400000).

    Raises:
        ValueError: it is neither; names `name`, the type and the value.
    """
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        return read_union(name, get_args(hint), value)
    if origin is Literal:
        if value not in get_args(hint):
            options = [str(option) for option in get_args(hint)]
            fail(name, f"one of {', '.join(options)}", value, nearest(str(value), options))
        return value
    if origin is tuple:
        return read_tuple(name, get_args(hint), value)
    if origin is dict:
        return read_dict(name, value)
    found = read_plain(hint, value)
    if found is None:
        fail(name, NAMES[hint], value)
    return found


def read_union(name: str, options: tuple[Any, ...], value: Any) -> Any:
    """None first, then each type in order; text is the last resort, so that bool | str takes "true" as a bool."""
    if NoneType in options and (value is None or (isinstance(value, str) and value.strip().lower() in NOTHING)):
        return None
    options = tuple(option for option in options if option is not NoneType)
    for option in sorted(options, key=lambda option: option is str):
        try:
            return read(name, option, value)
        except ValueError:
            continue
    fail(name, " or ".join(NAMES.get(option, str(option)) for option in options), value)


def read_plain(kind: type, value: Any) -> Any:
    """A bool, int, float or str; None where it is none."""
    text = isinstance(value, str)
    if kind is str:
        return os.fspath(value) if text or isinstance(value, os.PathLike) else None
    if kind is bool:
        return BOOLEANS.get(value.strip().lower()) if text else value if isinstance(value, bool) else None
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return kind(value) if text or kind is float or value == int(value) else None
    except (ValueError, OverflowError):  # "4e5" is no int("4e5"); infinity is none at all
        pass
    try:
        number = float(value)
    except ValueError:
        return None
    return int(number) if number.is_integer() else None


def read_tuple(name: str, items: tuple[Any, ...], value: Any) -> tuple[Any, ...]:
    parts = value.strip("()[] ").split(",") if isinstance(value, str) else value
    if not isinstance(parts, list | tuple) or len(parts) != len(items):
        fail(name, f"{len(items)} values", value)
    return tuple(read(name, item, part) for item, part in zip(items, parts, strict=True))


def read_dict(name: str, value: Any) -> dict[str, Any]:
    """A mapping, or text: JSON, or "key=value,key=value"; a list of texts, later ones over earlier ones."""
    if isinstance(value, list):
        merged: dict[str, Any] = {}
        for text in value:
            merged |= read_dict(name, text)
        return merged
    if isinstance(value, str):
        text = value.strip()
        pairs = [part.partition("=") for part in text.split(",") if part.strip()]
        if not text.startswith("{") and not all(sign for _, sign, _ in pairs):
            fail(name, "key=value,key=value or a JSON object", value)
        try:
            if text.startswith("{"):
                value = yaml.safe_load(text)
            else:
                value = {key.strip(): yaml.safe_load(item) for key, _, item in pairs}
        except yaml.YAMLError as error:
            fail(name, "key=value,key=value or a JSON object", value, f": {error}")
    if not isinstance(value, dict):
        fail(name, "a mapping", value)
    return dict(value)
