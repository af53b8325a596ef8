# SPDX-License-Identifier: Apache-2.0
"""Triton kernels of linear_gelu. x, dx (M, K); weight, dweight (F, K); bias, dbias (F,); y, u, dy, du (M, F).

    u = x weight^T + bias,   y = u s,   s = sigmoid(2z),   z = sqrt(2/pi) (u + 0.044715 u^3)
    du = dy (s + 2 u s (1 - s) z'),   dx = du weight,   dweight = du^T x,   dbias = sum_M(du)

Forward: a program makes one (BLOCK_M, BLOCK_F) tile of y, summed over K in float32, and u with it if it is kept;
bias and GELU act on the float32 sums. Grid (tiles of M * tiles of F), in groups of GROUP tiles of M that walk over
F together, so that a group's rows of x and each tile of weight stay in the cache.

Backward: a program walks `rows` rows of BLOCK_F columns, writes du in the storage dtype and its float32 sum of them,
partial (parts, F); these are added in order. Grid (parts, tiles of F); parts depends on M alone, so sums are the same
in every run. dx and dweight are plain products and PyTorch's vendor library makes them. Saved for backward: x,
weight, u.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._core.triton_common import add_dot

PARTS = 128
"""Most partial sums of dbias: enough programs for any GPU together with the tiles of F, and short to add up."""


@triton.jit
def _gate(u):
    """s = sigmoid(2z), with gelu(u) = u s, and s (1 - s). Nothing overflows, and no digit is lost far below zero,
    where 1 + tanh(z) would cancel."""
    z2 = 1.5957691216057308 * u * (1.0 + 0.044715 * u * u)
    e = tl.exp(-tl.abs(z2))
    return tl.where(z2 < 0, e, 1.0) / (1.0 + e), e / ((1.0 + e) * (1.0 + e))


@triton.jit
def _forward_kernel(
    x, weight, bias, y, u, M, F, K, KEEP: tl.constexpr, GROUP: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    tiles_m, tiles_f = tl.cdiv(M, BLOCK_M), tl.cdiv(F, BLOCK_F)
    group = tl.program_id(0) // (GROUP * tiles_f)
    inside = tl.program_id(0) % (GROUP * tiles_f)
    members = tl.minimum(tiles_m - group * GROUP, GROUP)
    row = (group * GROUP + inside % members) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = (inside // members) * BLOCK_F + tl.arange(0, BLOCK_F)
    x_rows = x + row.to(tl.int64)[:, None] * K
    weight_rows = weight + column.to(tl.int64)[None, :] * K
    acc = tl.zeros((BLOCK_M, BLOCK_F), tl.float32)
    for start in range(0, K, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        a = tl.load(x_rows + k[None, :], mask=(row[:, None] < M) & (k[None, :] < K), other=0.0)
        b = tl.load(weight_rows + k[:, None], mask=(k[:, None] < K) & (column[None, :] < F), other=0.0)
        acc = add_dot(acc, a, b)
    acc += tl.load(bias + column, mask=column < F, other=0.0).to(tl.float32)[None, :]
    place = row.to(tl.int64)[:, None] * F + column[None, :]
    mask = (row[:, None] < M) & (column[None, :] < F)
    if KEEP:
        tl.store(u + place, acc.to(u.dtype.element_ty), mask=mask)
    s, _ = _gate(acc)
    tl.store(y + place, (acc * s).to(y.dtype.element_ty), mask=mask)


@triton.jit
def _du_kernel(dy, u, du, partial, M, F, rows, BLOCK_M: tl.constexpr, BLOCK_F: tl.constexpr):
    first = tl.program_id(0) * rows
    last = tl.minimum(first + rows, M)
    column = tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F)
    total = tl.zeros((BLOCK_F,), tl.float32)
    for start in range(first, last, BLOCK_M):
        row = start + tl.arange(0, BLOCK_M)
        place = row.to(tl.int64)[:, None] * F + column[None, :]
        mask = (row[:, None] < last) & (column[None, :] < F)
        value = tl.load(u + place, mask=mask, other=0.0).to(tl.float32)
        s, s_1s = _gate(value)
        slope = 1.5957691216057308 * (1.0 + 3 * 0.044715 * value * value)  # 2 z'
        gradient = tl.load(dy + place, mask=mask, other=0.0).to(tl.float32) * (s + value * s_1s * slope)
        tl.store(du + place, gradient.to(du.dtype.element_ty), mask=mask)
        total += tl.sum(gradient, 0)
    tl.store(partial + tl.program_id(0).to(tl.int64) * F + column, total, mask=column < F)


def _tile(m: int, dtype: torch.dtype) -> dict[str, int]:
    """Forward tiles: tensor cores like them large, exact float32 products (scalar) do not; few rows fill few tiles."""
    if dtype == torch.float32:
        return {"BLOCK_M": 64, "BLOCK_F": 64, "BLOCK_K": 16, "GROUP": 8, "num_warps": 8, "num_stages": 2}
    if m <= 64:
        return {"BLOCK_M": 64, "BLOCK_F": 64, "BLOCK_K": 64, "GROUP": 8, "num_warps": 4, "num_stages": 4}
    return {"BLOCK_M": 128, "BLOCK_F": 128, "BLOCK_K": 64, "GROUP": 8, "num_warps": 8, "num_stages": 3}


def forward(x: Tensor, weight: Tensor, bias: Tensor, keep: bool) -> tuple[Tensor, Tensor]:
    f, k = weight.shape
    m = x.shape[:-1].numel()
    y = x.new_empty((*x.shape[:-1], f))
    u = x.new_empty((m if keep else 0, f))
    if y.numel():
        tile = _tile(m, x.dtype)
        grid = (triton.cdiv(m, tile["BLOCK_M"]) * triton.cdiv(f, tile["BLOCK_F"]),)
        _forward_kernel[grid](x, weight, bias, y, u if keep else y, m, f, k, KEEP=keep, **tile)
    return y, u


def backward(dy: Tensor, x: Tensor, weight: Tensor, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    (m, f), k = u.shape, weight.shape[1]
    du = torch.empty_like(u)
    rows = 32 * max(1, triton.cdiv(m, 32 * PARTS))
    partial = u.new_empty((triton.cdiv(m, rows), f), dtype=torch.float32)
    if u.numel():
        grid = (partial.shape[0], triton.cdiv(f, 128))
        _du_kernel[grid](dy, u, du, partial, m, f, rows, BLOCK_M=32, BLOCK_F=128, num_warps=4)
    dx, dweight = x.new_empty(x.shape), weight.new_empty(weight.shape)
    torch.mm(du, weight, out=dx.view(m, k))  # `out`: autocast does not touch it
    torch.mm(du.t(), x.view(m, k), out=dweight)
    return dx, dweight, partial.sum(0).to(weight.dtype)
