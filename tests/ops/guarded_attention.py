# SPDX-License-Identifier: Apache-2.0
"""Run as a process of its own (test_attention_triton.py): attention's Triton kernels, every tensor they are given or
write beside pages that may not be touched. A load or store past an end is a segmentation fault."""

import ctypes
import faulthandler
import itertools
import mmap
import os
from typing import Any
from unittest import mock

os.environ["TRITON_INTERPRET"] = "1"

import torch
from torch import Tensor

from dit_fast.ops import use_backend
from dit_fast.ops.attention.autograd import OP

PROTECT = ctypes.CDLL(None, use_errno=True).mprotect


def room(shape: tuple[int, ...], dtype: torch.dtype, last: bool) -> Tensor:
    """Memory between two forbidden pages; the tensor ends where the `last` begins, or begins where the first ends."""
    size = torch.Size(shape).numel() * dtype.itemsize
    if size == 0:
        return torch.zeros(shape, dtype=dtype)
    pages = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = mmap.mmap(-1, pages + 2 * mmap.PAGESIZE)
    base = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for place in (0, mmap.PAGESIZE + pages):
        assert PROTECT(ctypes.c_void_p(base + place), mmap.PAGESIZE, 0) == 0, os.strerror(ctypes.get_errno())
    offset = mmap.PAGESIZE + (pages - size if last else 0)
    return torch.frombuffer(memory, dtype=dtype, count=size // dtype.itemsize, offset=offset).view(shape)


def guarded(tensor: Tensor, last: bool) -> Tensor:
    return room(tuple(tensor.shape), tensor.dtype, last).copy_(tensor)


def solve(q: Tensor, k: Tensor | None, v: Tensor | None, norm: int, last: bool) -> None:
    def new_empty(tensor: Tensor, shape: Any, dtype: torch.dtype | None = None, device: str = "cpu") -> Tensor:
        return room((shape,) if isinstance(shape, int) else tuple(shape), dtype or tensor.dtype, last)

    def empty_like(tensor: Tensor) -> Tensor:
        return room(tuple(tensor.shape), tensor.dtype, last)

    q, k, v = (None if x is None else guarded(x, last) for x in (q, k, v))
    assert q is not None
    dh, affine, rope = q.shape[-1], None, None
    if norm:
        affine, rope = guarded(torch.ones(4, dh), last), guarded(torch.ones(2, q.shape[1], dh // 2), last)
    backend = OP._backend("triton")
    with mock.patch.object(torch.Tensor, "new_empty", new_empty), mock.patch.object(torch, "empty_like", empty_like):
        out, lse = backend.forward(q, k, v, affine, rope, 0.1, norm, 1e-6)
        assert backend.backward is not None
        results = backend.backward(guarded(out, last), q, k, v, affine, rope, out, lse, 0.1, norm, 1e-6)
    assert all(x.isfinite().all() for x in (out, lse, *results))


def main() -> None:
    faulthandler.enable()
    with use_backend("triton"):
        for dtype, last in itertools.product((torch.float32, torch.bfloat16), (True, False)):
            solve(torch.randn(1, 7, 3, 2, 72).to(dtype), None, None, 0, last)
            solve(torch.randn(1, 7, 3, 3, 40).to(dtype), None, None, 2, last)
            solve(*(torch.randn(1, t, 1, 24).to(dtype) for t in (5, 70, 70)), 0, last)
    print("stayed within", flush=True)


if __name__ == "__main__":
    main()
