# SPDX-License-Identifier: Apache-2.0
"""Triton kernels of the pass before attention: queries or keys normalised and rotated. Formulas in autograd.py.

x, y, dy, dx (N, T, H, Dh), any strides but a last one of 1. A row is one head of one token; rows are numbered
(n * T + t) * H + h. A program owns ROWS of them, in the backward CHUNK blocks of ROWS, over which it adds up dweight
and dbias: two float32 rows of its own, added in order afterwards. Grid: the programs. Columns are padded to a power of
two; the pairs that `rope` turns are split off and joined again. All arithmetic float32, one rounding.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

NORM_LAYER = tl.constexpr(2)

TILE = {"ROWS": 16, "num_warps": 4}
CHUNK = 16
"""Blocks of rows a program of the backward adds up: 256 rows, 16 tokens of XL/2."""


@triton.jit
def _rows(first, total, T, H, sample, token, head, ROWS: tl.constexpr, WIDTH: tl.constexpr, DH: tl.constexpr):
    """Offsets (ROWS, WIDTH) of the rows from `first` on, which of them exist, and the token of each row."""
    row = first + tl.arange(0, ROWS)
    column = tl.arange(0, WIDTH)
    t = row // H % T
    offset = row // (T * H) * sample + t * token + row % H * head
    return offset[:, None] + column[None, :], (row < total)[:, None] & (column < DH)[None, :], t


@triton.jit
def _normalize(x, eps, mask, NORM: tl.constexpr, DH: tl.constexpr):
    """u and rstd (ROWS, 1); columns beyond DH stay 0."""
    if NORM == 0:
        return x, tl.full((x.shape[0], 1), 1.0, tl.float32)
    if NORM == NORM_LAYER:
        x = tl.where(mask, x - (tl.sum(x, 1) / DH)[:, None], 0.0)
    rstd = (1.0 / tl.sqrt(tl.sum(x * x, 1) / DH + eps))[:, None]
    return x * rstd, rstd


@triton.jit
def _turn(x, rope, t, T, SIGN: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr, DH: tl.constexpr):
    """Each pair of columns turned by the angles of its row's token, or back (SIGN -1)."""
    pair = tl.arange(0, WIDTH // 2)
    at = rope + t[:, None] * (DH // 2) + pair[None, :]
    mask = (pair < DH // 2)[None, :] & (t >= 0)[:, None]
    cos = tl.load(at, mask=mask, other=0.0)
    sin = tl.load(at + T * (DH // 2), mask=mask, other=0.0) * SIGN
    even, odd = tl.split(tl.reshape(x, (ROWS, WIDTH // 2, 2)))
    return tl.reshape(tl.join(even * cos - odd * sin, odd * cos + even * sin), (ROWS, WIDTH))


@triton.jit
def _prepare_kernel(
    x, y, weight, bias, rope, total, T, H, xn, xt, xh, eps,
    DH: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, NORM: tl.constexpr, AFFINE: tl.constexpr,
    ROPE: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0).to(tl.int64) * ROWS
    at, mask, t = _rows(first, total, T, H, xn, xt, xh, ROWS, WIDTH, DH)
    value, _ = _normalize(tl.load(x + at, mask=mask, other=0.0).to(tl.float32), eps, mask, NORM, DH)
    if AFFINE:
        column = tl.arange(0, WIDTH)
        value = value * tl.load(weight + column, mask=column < DH, other=0.0)[None, :]
        value += tl.load(bias + column, mask=column < DH, other=0.0)[None, :]
    if ROPE:
        value = _turn(value, rope, t, T, 1, ROWS, WIDTH, DH)
    to, _, _ = _rows(first, total, T, H, T * H * DH, H * DH, DH, ROWS, WIDTH, DH)
    tl.store(y + to, value.to(y.dtype.element_ty), mask=mask)


@triton.jit
def _prepare_backward_kernel(
    x, dy, weight, rope, partial, total, T, H, xn, xt, xh, dn, dt, dh, eps,
    DH: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, NORM: tl.constexpr, AFFINE: tl.constexpr,
    ROPE: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """dy is replaced by dx."""
    column = tl.arange(0, WIDTH)
    factor = tl.full((WIDTH,), 1.0, tl.float32)
    if AFFINE:
        factor = tl.load(weight + column, mask=column < DH, other=0.0)
    dweight = tl.zeros((WIDTH,), tl.float32)
    dbias = tl.zeros((WIDTH,), tl.float32)
    for block in range(CHUNK):
        first = (tl.program_id(0).to(tl.int64) * CHUNK + block) * ROWS
        at, mask, t = _rows(first, total, T, H, xn, xt, xh, ROWS, WIDTH, DH)
        to, _, _ = _rows(first, total, T, H, dn, dt, dh, ROWS, WIDTH, DH)
        u, rstd = _normalize(tl.load(x + at, mask=mask, other=0.0).to(tl.float32), eps, mask, NORM, DH)
        g = tl.load(dy + to, mask=mask, other=0.0).to(tl.float32)
        if ROPE:
            g = _turn(g, rope, t, T, -1, ROWS, WIDTH, DH)
        dweight += tl.sum(g * u, 0)
        dbias += tl.sum(g, 0)
        g = g * factor[None, :]
        if NORM != 0:
            along = u * (tl.sum(g * u, 1) / DH)[:, None]
            if NORM == NORM_LAYER:
                along += (tl.sum(g, 1) / DH)[:, None]
            g = rstd * (g - along)
        tl.store(dy + to, g.to(dy.dtype.element_ty), mask=mask)
    if AFFINE:
        sums = partial + tl.program_id(0).to(tl.int64) * 2 * DH + column
        tl.store(sums, dweight, mask=column < DH)
        tl.store(sums + DH, dbias, mask=column < DH)


def _shape(x: Tensor, norm: int, affine: Tensor | None, rope: Tensor | None) -> dict[str, int]:
    dh = x.shape[-1]
    return {
        "DH": dh, "WIDTH": triton.next_power_of_2(dh), "NORM": norm, "AFFINE": affine is not None,
        "ROPE": rope is not None, **TILE,
    }  # fmt: skip


def prepare(x: Tensor, affine: Tensor | None, rope: Tensor | None, norm: int, eps: float) -> Tensor:
    """x (N, T, H, Dh), normalised and rotated, dense; affine (2, Dh): weight, bias."""
    n, t, h, _ = x.shape
    y = x.new_empty(x.shape)
    total = n * t * h
    if total:
        weight, bias = (x, x) if affine is None else affine
        _prepare_kernel[(triton.cdiv(total, TILE["ROWS"]),)](
            x, y, weight, bias, x if rope is None else rope, total, t, h, *x.stride()[:3], eps,
            **_shape(x, norm, affine, rope),
        )  # fmt: skip
    return y


def prepare_backward(
    x: Tensor, dy: Tensor, affine: Tensor | None, rope: Tensor | None, norm: int, eps: float
) -> Tensor:
    """Turns dy, any strides, into dx where it is; the answer is daffine (2, Dh), (0,) without `affine`."""
    n, t, h, dh = x.shape
    total = n * t * h
    programs = triton.cdiv(total, TILE["ROWS"] * CHUNK)
    partial = x.new_empty((programs if affine is not None else 0, 2, dh), dtype=torch.float32)
    if total:
        _prepare_backward_kernel[(programs,)](
            x, dy, x if affine is None else affine[0], x if rope is None else rope, partial, total, t, h,
            *x.stride()[:3], *dy.stride()[:3], eps, CHUNK=CHUNK, **_shape(x, norm, affine, rope),
        )  # fmt: skip
    return partial.new_empty(0) if affine is None else partial.sum(0)
