# SPDX-License-Identifier: Apache-2.0
# mypy: allow-untyped-defs
"""Tiles of heads in attention's Triton kernels: rows loaded and stored, and the product of the rows of two tiles."""

import triton
import triton.language as tl

from .._core.triton_common import add_dot


@triton.jit
def load_rows(base, rows, row_stride, count, FIRST: tl.constexpr, WIDTH: tl.constexpr, DH: tl.constexpr):
    """Rows (R,) of one head, columns FIRST to FIRST + WIDTH: (R, WIDTH), 0 outside of (count, DH)."""
    column = FIRST + tl.arange(0, WIDTH)
    mask = rows[:, None] < count
    if FIRST + WIDTH > DH:
        mask = mask & (column[None, :] < DH)
    return tl.load(base + rows[:, None].to(tl.int64) * row_stride + column[None, :], mask=mask, other=0.0)


@triton.jit
def store_rows(base, rows, row_stride, count, value, FIRST: tl.constexpr, WIDTH: tl.constexpr, DH: tl.constexpr):
    column = FIRST + tl.arange(0, WIDTH)
    mask = rows[:, None] < count
    if FIRST + WIDTH > DH:
        mask = mask & (column[None, :] < DH)
    pointer = base + rows[:, None].to(tl.int64) * row_stride + column[None, :]
    tl.store(pointer, value.to(base.dtype.element_ty), mask=mask)


@triton.jit
def rows_by_rows(
    a0, a1, b0, b1, a, a_rows, a_stride, a_count, b, b_rows, b_stride, b_count, DH: tl.constexpr, D1: tl.constexpr
):  # fmt: skip
    """a b^T of a tile, from the column blocks a0, a1 and b0, b1 of its rows (a1, b1 where D1 > 0). Of float32, from the
    rows in memory, sixteen columns at a time: a block of 64 would be one chain of 64 roundings. The loop is not
    unrolled, or the compiler would keep all of its loads in registers."""
    product = tl.zeros((a0.shape[0], b0.shape[0]), tl.float32)
    if a0.dtype == tl.float32:
        a_row, b_row = a + a_rows[:, None].to(tl.int64) * a_stride, b + b_rows[:, None].to(tl.int64) * b_stride
        for first in range(0, DH, 16):
            column = first + tl.arange(0, 16)[None, :]
            a_part = tl.load(a_row + column, mask=(a_rows[:, None] < a_count) & (column < DH), other=0.0)
            b_part = tl.load(b_row + column, mask=(b_rows[:, None] < b_count) & (column < DH), other=0.0)
            product = add_dot(product, a_part, b_part.T)
    else:
        product = add_dot(product, a0, b0.T)
        if D1 > 0:
            product = add_dot(product, a1, b1.T)
    return product
