# SPDX-License-Identifier: Apache-2.0
"""csrc/cpu_twin, compiled when first asked for: attention's CPU kernels as processors with products of bf16 pairs run
them, which few machines that run these tests are."""

import ctypes
import functools
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dit_fast.ops._core import native
from dit_fast.ops.attention.heads import new_gradients, unpack, views

ROOT = Path(__file__).resolve().parents[2]
FLAGS = {"portable": [], "avx2": ["-mavx2", "-mfma", "-mf16c"]}
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
"""In the order of csrc/common/dtype.h."""


class Heads(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("stride", ctypes.c_int64 * 3)]


SIZES = [(name, ctypes.c_int64) for name in ("batch", "queries", "keys", "heads", "dim")]
SIZES += [("scale", ctypes.c_float), ("dtype", ctypes.c_int)]


class Forward(ctypes.Structure):
    """AttentionForward of csrc/ops/attention/attention.h."""

    _fields_ = [*((name, Heads) for name in "qkv"), ("out", ctypes.c_void_p), ("lse", ctypes.c_void_p), *SIZES]


class Backward(ctypes.Structure):
    """AttentionBackward."""

    _fields_ = [*((name, Heads) for name in "qkv")]
    _fields_ += [(name, ctypes.c_void_p) for name in ("dout", "out", "lse")]
    _fields_ += [*((name, Heads) for name in ("dq", "dk", "dv")), ("scratch", ctypes.c_void_p), *SIZES]


@functools.cache
def load(isa: str) -> ctypes.CDLL:
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler to make the twin with")
    if isa not in native.instruction_sets():
        pytest.skip(f"this CPU has no {isa}")
    library = ROOT / "build" / f"cpu_twin_{isa}.so"
    sources = [path for path in (ROOT / "csrc").rglob("*") if path.suffix in (".cpp", ".h")]
    if not library.exists() or library.stat().st_mtime < max(path.stat().st_mtime for path in sources):
        library.parent.mkdir(exist_ok=True)
        command = [compiler, "-std=c++17", "-O2", "-fPIC", "-shared", "-fno-math-errno", "-Wno-psabi"]
        command += [f"-DDIT_ISA={isa}", "-DDIT_EMULATE_PAIRS", *FLAGS[isa], "-I", str(ROOT / "csrc"), "-o", str(library)]
        subprocess.run([*command, str(ROOT / "csrc" / "cpu_twin" / "twin.cpp")], check=True)
    return ctypes.CDLL(str(library))


def _heads(*tensors: Tensor) -> list[Heads]:
    return [Heads(x.data_ptr(), (ctypes.c_int64 * 3)(*x.stride()[:3])) for x in tensors]


def _sizes(q: Tensor, k: Tensor, scale: float) -> tuple[object, ...]:
    n, tq, h, dh = q.shape
    return n, tq, k.shape[1], h, dh, scale, DTYPES[q.dtype]


class Attention(torch.autograd.Function):
    """Arguments: isa, q, k, v as the operator takes them, scale."""

    @staticmethod
    def forward(ctx, isa, q, k, v, scale):
        ctx.isa, ctx.scale, given = isa, scale, (q, k, v)
        q, k, v = unpack(q, k, v)
        n, tq, h, dh = q.shape
        out, lse = q.new_empty((n, tq, h * dh)), q.new_empty((n, h, tq), dtype=torch.float32)
        arguments = Forward(*_heads(q, k, v), out.data_ptr(), lse.data_ptr(), *_sizes(q, k, scale))
        load(isa).twin_forward(ctypes.byref(arguments))
        ctx.save_for_backward(*given, out, lse)
        return out

    @staticmethod
    def backward(ctx, dout):
        q, k, v, out, lse = ctx.saved_tensors
        packed, results = k is None, new_gradients(q, k, v)
        q, k, v = unpack(q, k, v)
        data = [x.data_ptr() for x in (dout.contiguous(), out, lse)]
        gradients = _heads(*views(*results))
        arguments = Backward(*_heads(q, k, v), *data, *gradients, None, *_sizes(q, k, ctx.scale))
        load(ctx.isa).twin_backward(ctypes.byref(arguments))
        return None, *((results[0], None, None) if packed else results), None


def attention(isa: str, q: Tensor, k: Tensor | None = None, v: Tensor | None = None, *, scale: float | None = None):
    return Attention.apply(isa, q, k, v, q.shape[-1] ** -0.5 if scale is None else scale)


def exp(isa: str, x: Tensor, scale: float = 1.0) -> Tensor:
    """e^(scale * x); x float32, a multiple of 16 elements."""
    y = torch.empty_like(x)
    load(isa).twin_exp(_pointer(x), _pointer(y), ctypes.c_int64(x.numel()), ctypes.c_float(scale))
    return y


def multiply_add(isa: str, sums: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """sums (n,) float32, a and b (n, 2) bfloat16, n a multiple of 16: sums + (a * b).sum(-1)."""
    sums = sums.clone()
    load(isa).twin_multiply_add(_pointer(sums), _pointer(a), _pointer(b), ctypes.c_int64(sums.numel()))
    return sums


def _pointer(x: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(x.data_ptr())
