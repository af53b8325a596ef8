# SPDX-License-Identifier: Apache-2.0
"""Triton kernels of the pass before attention: queries or keys normalised and rotated. Formulas in autograd.py.

x, y, dy, dx (N, T, H, Dh), any strides but a last one of 1. A row is one head of one token; a sample's rows are
numbered t * H + h. A program owns ROWS rows of one sample, in the backward CHUNK times as many, over which it adds up
dweight and dbias: two float32 rows of its own, added up afterwards in an order that shapes alone decide. Grid
(N * parts of a sample). Columns are padded to a power of two; the pairs that `rope` turns are split off and joined
again. All arithmetic float32, one rounding.

Strides come in units of UNIT elements, as in triton_kernel.py.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .heads import units

NORM_LAYER = tl.constexpr(2)

TILE = {"ROWS": 16, "num_warps": 4}
CHUNK = 16
"""Blocks of rows a program of the backward adds up: 256 rows, 16 tokens of XL/2."""


@triton.jit
def _rows(first, T, H, token, head, UNIT: tl.constexpr, WIDTH: tl.constexpr, DH: tl.constexpr, ROWS: tl.constexpr):
    """Offsets (ROWS, WIDTH) of a sample's rows from `first` on, which of them exist, and the token of each row."""
    row = first + tl.arange(0, ROWS)
    column = tl.arange(0, WIDTH)
    t = row // H
    offset = (t.to(tl.int64) * token + (row % H).to(tl.int64) * head) * UNIT
    return offset[:, None] + column[None, :], (row < T * H)[:, None] & (column < DH)[None, :], t


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
def _turn(x, rope, t, T, SIGN: tl.constexpr, DH: tl.constexpr):
    """Each pair of columns turned by the angles of its row's token, or back (SIGN -1)."""
    HALF: tl.constexpr = x.shape[1] // 2
    pair = tl.arange(0, HALF)
    mask = (pair < DH // 2)[None, :] & (t < T)[:, None]
    cos = tl.load(rope + t.to(tl.int64)[:, None] * (DH // 2) + pair[None, :], mask=mask, other=0.0)
    sin = tl.load(rope + (t.to(tl.int64) + T)[:, None] * (DH // 2) + pair[None, :], mask=mask, other=0.0) * SIGN
    even, odd = tl.split(tl.reshape(x, (x.shape[0], HALF, 2)))
    return tl.reshape(tl.join(even * cos - odd * sin, odd * cos + even * sin), x.shape)


@triton.jit
def _prepare_kernel(
    x, y, weight, bias, rope, parts, T, H, xn, xt, xh, eps,
    DH: tl.constexpr, WIDTH: tl.constexpr, UNIT: tl.constexpr, ROWS: tl.constexpr, NORM: tl.constexpr,
    AFFINE: tl.constexpr, ROPE: tl.constexpr,
):  # fmt: skip
    """y is dense."""
    n, first = (tl.program_id(0) // parts).to(tl.int64), tl.program_id(0) % parts * ROWS
    at, mask, t = _rows(first, T, H, xt, xh, UNIT, WIDTH, DH, ROWS)
    value = tl.load(x + n * xn * UNIT + at, mask=mask, other=0.0).to(tl.float32)
    value, _ = _normalize(value, eps, mask, NORM, DH)
    column = tl.arange(0, WIDTH)
    if AFFINE:
        value = value * tl.load(weight + column, mask=column < DH, other=0.0)[None, :]
        value += tl.load(bias + column, mask=column < DH, other=0.0)[None, :]
    if ROPE:
        value = _turn(value, rope, t, T, 1, DH)
    row = n * T * H + first + tl.arange(0, ROWS)
    tl.store(y + row[:, None] * DH + column[None, :], value.to(y.dtype.element_ty), mask=mask)


@triton.jit
def _prepare_backward_kernel(
    x, dy, weight, rope, partial, parts, T, H, xn, xt, xh, dn, dt, dh, eps,
    DH: tl.constexpr, WIDTH: tl.constexpr, UNIT: tl.constexpr, ROWS: tl.constexpr, NORM: tl.constexpr,
    AFFINE: tl.constexpr, ROPE: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """dy is replaced by dx."""
    n, begin = (tl.program_id(0) // parts).to(tl.int64), tl.program_id(0) % parts * (CHUNK * ROWS)
    x += n * xn * UNIT
    dy += n * dn * UNIT
    column = tl.arange(0, WIDTH)
    factor = tl.full((WIDTH,), 1.0, tl.float32)
    if AFFINE:
        factor = tl.load(weight + column, mask=column < DH, other=0.0)
    dweight = tl.zeros((WIDTH,), tl.float32)
    dbias = tl.zeros((WIDTH,), tl.float32)
    for first in range(begin, tl.minimum(begin + CHUNK * ROWS, T * H), ROWS):
        at, mask, t = _rows(first, T, H, xt, xh, UNIT, WIDTH, DH, ROWS)
        to, _, _ = _rows(first, T, H, dt, dh, UNIT, WIDTH, DH, ROWS)
        u, rstd = _normalize(tl.load(x + at, mask=mask, other=0.0).to(tl.float32), eps, mask, NORM, DH)
        g = tl.load(dy + to, mask=mask, other=0.0).to(tl.float32)
        if ROPE:
            g = _turn(g, rope, t, T, -1, DH)
        if AFFINE:
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
    if n * t * h:
        parts = triton.cdiv(t * h, TILE["ROWS"])
        weight, bias = (x, x) if affine is None else affine
        unit, strides = units(x)
        _prepare_kernel[(n * parts,)](
            x, y, weight, bias, x if rope is None else rope, parts, t, h, *strides, eps,
            UNIT=unit, **_shape(x, norm, affine, rope),
        )  # fmt: skip
    return y


def prepare_backward(
    x: Tensor, dy: Tensor, affine: Tensor | None, rope: Tensor | None, norm: int, eps: float
) -> Tensor:
    """Turns dy, any strides, into dx where it is; the answer is daffine (2, Dh), (0,) without `affine`."""
    n, t, h, dh = x.shape
    parts = triton.cdiv(t * h, TILE["ROWS"] * CHUNK)
    partial = x.new_empty((n * parts if affine is not None else 0, 2, dh), dtype=torch.float32)
    if n * parts:
        unit, strides = units(x, dy)
        _prepare_backward_kernel[(n * parts,)](
            x, dy, x if affine is None else affine[0], x if rope is None else rope, partial, parts, t, h, *strides,
            eps, UNIT=unit, CHUNK=CHUNK, **_shape(x, norm, affine, rope),
        )  # fmt: skip
    return partial.new_empty(0) if affine is None else partial.sum(0)
