# SPDX-License-Identifier: Apache-2.0
"""Makes bfloat16 real in Triton's interpreter, where it is a 16-bit pattern (seen in triton 3.6 to 3.9).

Unpatched, `tl.dot` and arithmetic on bfloat16 work on the patterns as integers, and float32 to bfloat16 truncates.
Here operands are widened to float32 first and results rounded to nearest even. Interpreter only; GPUs do not pass
through here.
"""

from typing import Any

import numpy as np

_installed = False


def _widen(pattern: np.ndarray) -> np.ndarray:
    return (np.ascontiguousarray(pattern).astype(np.uint32) << 16).view(np.float32)


def _narrow(values: np.ndarray) -> np.ndarray:
    values = np.ascontiguousarray(values, dtype=np.float32)
    bits = values.view(np.uint32)
    nearest = ((bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), nearest)


def install() -> None:
    """Patch the interpreter of the installed triton, once."""
    global _installed
    if _installed:
        return
    _installed = True

    import triton.language as tl
    from triton.runtime import interpreter

    builder, handle = interpreter.InterpreterBuilder, interpreter.TensorHandle
    bitwise = {np.bitwise_and, np.bitwise_or, np.bitwise_xor, np.left_shift, np.right_shift}

    def is_bf16(value: Any) -> bool:
        return hasattr(value, "dtype") and value.dtype.scalar == tl.bfloat16

    def up(value: Any) -> Any:
        return handle(_widen(value.data), tl.float32) if is_bf16(value) else value

    def down(value: Any) -> Any:
        return handle(_narrow(value.data), tl.bfloat16) if value.data.dtype.kind == "f" else value

    def arithmetic(name: str, operands: int) -> None:
        original = getattr(builder, name)

        def patched(self: Any, *arguments: Any) -> Any:
            values, rest = arguments[:operands], arguments[operands:]
            if not any(is_bf16(v) for v in values) or (rest and rest[0] in bitwise):
                return original(self, *arguments)
            return down(original(self, *(up(v) for v in values), *rest))

        setattr(builder, name, patched)

    arithmetic("binary_op", 2)
    arithmetic("unary_op", 1)
    if hasattr(builder, "create_fma"):
        arithmetic("create_fma", 3)

    dot, cast, fp_to_fp = builder.create_dot, builder.cast_impl, builder.create_fp_to_fp

    def create_dot(self: Any, a: Any, b: Any, c: Any, *rest: Any) -> Any:
        return dot(self, up(a), up(b), c, *rest)

    def cast_impl(self: Any, source: Any, target: Any) -> Any:
        if is_bf16(source) and target.scalar != tl.bfloat16:
            return cast(self, up(source), target)
        if target.scalar == tl.bfloat16 and not is_bf16(source):
            return handle(_narrow(source.data.astype(np.float32)), tl.bfloat16)
        return cast(self, source, target)

    def create_fp_to_fp(self: Any, source: Any, target: Any, *rest: Any) -> Any:
        if is_bf16(source) or target.scalar == tl.bfloat16:
            return cast_impl(self, source, target)
        return fp_to_fp(self, source, target, *rest)

    def get_bf16(self: Any, value: float) -> Any:
        return handle(_narrow(np.array([value], dtype=np.float32)), tl.bfloat16)

    builder.create_dot = create_dot
    builder.cast_impl = cast_impl
    builder.create_fp_to_fp = create_fp_to_fp
    builder.get_bf16 = get_bf16
