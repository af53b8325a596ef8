# SPDX-License-Identifier: Apache-2.0
"""Triton kernels of gated_residual. x, y, out, dout, dy (N, T, D); gate (N, D) with a row stride.

    out = x + gate * y;   dy = dout * gate,   dgate = sum_T(dout * y)

Forward: the T * D elements of a sample, laid end to end, are cut into tiles of BLOCK, grid (N * tiles), so
that only a sample's last tile is masked, whatever D is; element e belongs to column e % D of the gate.
Backward: grid (N * chunks * columns), a program holds CHUNK tokens of BLOCK_D columns (128 divides the width
of every model) and writes one row of partial sums (triton_common.py).
All arithmetic is float32; saved for backward: y, gate.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._core.triton_common import CHUNK, finish_token_sums

BLOCK = 2048
BLOCK_D = 128


@triton.jit
def _forward_kernel(x, y, gate, out, size, D, tiles, gate_stride, BLOCK: tl.constexpr):
    item = tl.program_id(0).to(tl.int64)
    n, tile = item // tiles, item % tiles
    element = (tile * BLOCK).to(tl.int32) + tl.arange(0, BLOCK)
    mask = element < size
    at = n * size + element
    g = tl.load(gate + n * gate_stride + element % D, mask=mask, other=0.0).to(tl.float32)
    x_tile = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
    y_tile = tl.load(y + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + at, (x_tile + g * y_tile).to(out.dtype.element_ty), mask=mask)


@triton.jit
def _backward_kernel(
    dout, y, gate, dy, partial, T, D, chunks, columns, gate_stride, CHUNK: tl.constexpr, BLOCK_D: tl.constexpr
):
    item = tl.program_id(0).to(tl.int64)
    part = item // columns  # n * chunks + chunk
    n, chunk = part // chunks, part % chunks
    column = (item % columns) * BLOCK_D + tl.arange(0, BLOCK_D)
    token = chunk * CHUNK + tl.arange(0, CHUNK)
    mask = column < D
    both = (token < T)[:, None] & mask[None, :]
    at = (n * T + token)[:, None] * D + column[None, :]  # (CHUNK, BLOCK_D)
    g = tl.load(gate + n * gate_stride + column, mask=mask, other=0.0).to(tl.float32)
    dout_tile = tl.load(dout + at, mask=both, other=0.0).to(tl.float32)
    y_tile = tl.load(y + at, mask=both, other=0.0).to(tl.float32)
    tl.store(dy + at, (dout_tile * g[None, :]).to(dy.dtype.element_ty), mask=both)
    tl.store(partial + part * D + column, tl.sum(dout_tile * y_tile, 0), mask=mask)


def forward(x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
    n, t, d = x.shape
    out = torch.empty_like(x)
    tiles = triton.cdiv(t * d, BLOCK)
    if out.numel():
        _forward_kernel[(n * tiles,)](x, y, gate, out, t * d, d, tiles, gate.stride(0), BLOCK=BLOCK)
    return out


def backward(dout: Tensor, y: Tensor, gate: Tensor) -> tuple[Tensor, Tensor]:
    n, t, d = y.shape
    chunks, columns = triton.cdiv(t, CHUNK), triton.cdiv(d, BLOCK_D)
    dy = torch.empty_like(y)
    partial = y.new_empty((n, chunks, 1, d), dtype=torch.float32)
    if dy.numel():
        _backward_kernel[(n * chunks * columns,)](
            dout, y, gate, dy, partial, t, d, chunks, columns, gate.stride(0), CHUNK=CHUNK, BLOCK_D=BLOCK_D
        )
    (dgate,) = finish_token_sums(partial, y.dtype)
    return dy, dgate
