# SPDX-License-Identifier: Apache-2.0
"""Short names of compiled kernels: `_ZN8dit_fast...adaln_forwardI13__nv_bfloat16Li1152EE...` is `adaln_forward<bf16,
1152>`: no namespaces, no arguments, dtypes as Triton writes them."""

import ctypes
import re

DTYPES = {"__nv_bfloat16": "bf16", "__half": "fp16", "float": "fp32", "double": "fp64"}


def short_name(symbol: str) -> str:
    """A symbol of a cubin as a person would write it."""
    name = _without_arguments(demangle(symbol))
    name = name.removeprefix("void ")  # only templates carry their return type
    name = re.sub(r"(?:\(anonymous namespace\)|\b[A-Za-z_]\w*)::", "", name).replace("> >", ">>")
    return re.sub(r"\b(?:" + "|".join(DTYPES) + r")\b", lambda match: DTYPES[match[0]], name)


def demangle(symbol: str) -> str:
    """A C++ symbol as source text, by the C++ runtime that torch itself loads; other symbols as they are."""
    runtime = ctypes.CDLL("libstdc++.so.6")
    runtime.__cxa_demangle.restype = ctypes.c_void_p
    status = ctypes.c_int()
    text = runtime.__cxa_demangle(symbol.encode(), None, None, ctypes.byref(status))
    if status.value:
        return symbol
    try:
        return ctypes.string_at(text).decode()
    finally:
        libc = ctypes.CDLL(None)
        libc.free(ctypes.c_void_p(text))


def _without_arguments(name: str) -> str:
    """Cut at the parenthesis that opens the argument list: outside of <>, and not an anonymous namespace's."""
    depth = 0
    for place, letter in enumerate(name):
        depth += (letter == "<") - (letter == ">")
        if letter == "(" and depth == 0 and not name.startswith("(anonymous namespace)", place):
            return name[:place]
    return name
