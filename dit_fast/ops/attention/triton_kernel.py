# SPDX-License-Identifier: Apache-2.0
"""Triton kernels of attention. q, dq (N, Tq, H, Dh); k, v, dk, dv (N, Tk, H, Dh), any strides but a last one of 1;
out, dout (N, Tq, H*Dh) dense; lse, delta (N, H, Tq) float32.

    S = scale * q k^T,   P = softmax(S),   out = P v,   lse = log(sum_k exp(S))
    dv = P^T dout,   dS = P * (dout v^T - delta),   delta = rowsum(P * dout v^T) = rowsum(dout * out)
    dq = scale * dS k,   dk = scale * dS^T q

Forward, delta and dq: a program owns BLOCK_M queries of one head of one sample, and walks over the keys BLOCK_N at a
time. dk, dv: a program owns BLOCK_N keys and walks over the queries BLOCK_M at a time. Grid (N * H * tiles), tiles of
one head next to each other, so that they find its other operand in the cache. No atomics: each result has one owner,
and S is made twice in the backward instead. Saved for backward: q, k, v, out, lse.

The dq kernel runs before the other and leaves two numbers a row for it: delta, and norm = 1 / rowsum(exp(S - lse)). In
exact arithmetic norm is 1, but lse is rounded: at 1e4 by up to 5e-4, an error that P would carry in whole rows.
Where delta from a rounded `out` is not good enough, a kernel of its own sums it first; in one kernel, two walks over
the keys kept q and dout in registers between them, and spilled.

A head is split in two column blocks: D0, the largest power of two in Dh, and D1, the rest rounded up to a power of
two of at least 16 and masked (0 where there is none): 72 = 64 + 8 of 16, where one block would be 128 wide. Strides
come in units of UNIT elements (heads.py: units), which tells the compiler that loads may be wide.

tl.dot has operands of the storage dtype (P and dS rounded to it; float32 exactly, not as tf32) and float32 sums;
softmax, lse and delta are float32; exponentials are base 2. A result is rounded once. An error of a logit is one of a
whole probability: in float32, S and dP are summed sixteen columns at a time, straight from memory.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._core.triton_common import add_dot
from .heads import new_gradients, units, unpack, views
from .triton_prepare import prepare, prepare_backward
from .triton_tiles import load_rows, rows_by_rows, store_rows

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def _locate(T, H, BLOCK: tl.constexpr):
    """This program's sample, head and rows, and its head's number in (N, H)."""
    tiles = tl.cdiv(T, BLOCK)
    item = (tl.program_id(0) // tiles).to(tl.int64)
    rows = (tl.program_id(0) % tiles) * BLOCK + tl.arange(0, BLOCK)
    return item // H, item % H, rows, item


@triton.jit
def _forward_kernel(
    q, k, v, out, lse, qn, qt, qh, kn, kt, kh, vn, vt, vh, Tq, Tk, H, scale,
    DH: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, UNIT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    n, h, rows, item = _locate(Tq, H, BLOCK_M)
    q += (n * qn + h * qh) * UNIT
    k += (n * kn + h * kh) * UNIT
    v += (n * vn + h * vh) * UNIT
    qt, kt, vt = qt * UNIT, kt * UNIT, vt * UNIT
    out += (n * Tq * H + h) * DH
    q0 = load_rows(q, rows, qt, Tq, 0, D0, DH)  # (BLOCK_M, D0)
    q1 = q0
    if D1 > 0:
        q1 = load_rows(q, rows, qt, Tq, D0, D1, DH)  # (BLOCK_M, D1)
        acc1 = tl.zeros((BLOCK_M, D1), tl.float32)
    acc0 = tl.zeros((BLOCK_M, D0), tl.float32)
    top = tl.full((BLOCK_M,), float("-inf"), tl.float32)  # largest logit so far, base 2
    total = tl.zeros((BLOCK_M,), tl.float32)  # sum of exp2(logit - top)
    for start in range(0, Tk, BLOCK_N):
        keys = start + tl.arange(0, BLOCK_N)
        k0 = load_rows(k, keys, kt, Tk, 0, D0, DH)
        k1 = k0
        if D1 > 0:
            k1 = load_rows(k, keys, kt, Tk, D0, D1, DH)
        s = rows_by_rows(q0, q1, k0, k1, q, rows, qt, Tq, k, keys, kt, Tk, DH, D1)
        s = tl.where(keys[None, :] < Tk, s * (scale * LOG2E), float("-inf"))
        new_top = tl.maximum(top, tl.max(s, 1))
        p = tl.exp2(s - new_top[:, None])
        shrink = tl.exp2(top - new_top)
        total = total * shrink + tl.sum(p, 1)
        top = new_top
        p = p.to(v.dtype.element_ty)
        acc0 = add_dot(acc0 * shrink[:, None], p, load_rows(v, keys, vt, Tk, 0, D0, DH))
        if D1 > 0:
            acc1 = add_dot(acc1 * shrink[:, None], p, load_rows(v, keys, vt, Tk, D0, D1, DH))
    store_rows(out, rows, H * DH, Tq, acc0 / total[:, None], 0, D0, DH)
    if D1 > 0:
        store_rows(out, rows, H * DH, Tq, acc1 / total[:, None], D0, D1, DH)
    tl.store(lse + item * Tq + rows, (top + tl.log2(total)) / LOG2E, mask=rows < Tq)


@triton.jit
def _s_dp(
    q0, q1, do0, do1, k0, k1, q, dout, rows, qt, dt, Tq, k, v, keys, kt, vt, Tk, scale,
    DH: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr,
):  # fmt: skip
    """S, base 2, and dP of one tile (BLOCK_M, BLOCK_N). With D1 of 0, q1, do1 and k1 are not read."""
    v0 = load_rows(v, keys, vt, Tk, 0, D0, DH)
    v1 = v0
    if D1 > 0:
        v1 = load_rows(v, keys, vt, Tk, D0, D1, DH)
    s = rows_by_rows(q0, q1, k0, k1, q, rows, qt, Tq, k, keys, kt, Tk, DH, D1)
    dp = rows_by_rows(do0, do1, v0, v1, dout, rows, dt, Tq, v, keys, vt, Tk, DH, D1)
    return tl.where(keys[None, :] < Tk, s * (scale * LOG2E), float("-inf")), dp


@triton.jit
def _delta_kernel(
    dout, q, k, v, delta, qn, qt, qh, kn, kt, kh, vn, vt, vh, Tq, Tk, H, scale,
    DH: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, UNIT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """delta = rowsum(P * dP), from which dP - delta cancels as it does in a plain softmax. P is made as in the forward,
    not from the rounded lse: one key far above all others has P = 1 exactly, and dS = 0."""
    n, h, rows, item = _locate(Tq, H, BLOCK_M)
    q += (n * qn + h * qh) * UNIT
    k += (n * kn + h * kh) * UNIT
    v += (n * vn + h * vh) * UNIT
    qt, kt, vt = qt * UNIT, kt * UNIT, vt * UNIT
    dout += (n * Tq * H + h) * DH
    q0 = load_rows(q, rows, qt, Tq, 0, D0, DH)
    do0 = load_rows(dout, rows, H * DH, Tq, 0, D0, DH)
    q1, do1 = q0, do0
    if D1 > 0:
        q1 = load_rows(q, rows, qt, Tq, D0, D1, DH)
        do1 = load_rows(dout, rows, H * DH, Tq, D0, D1, DH)
    row_delta = tl.zeros((BLOCK_M,), tl.float32)
    top = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    for start in range(0, Tk, BLOCK_N):
        keys = start + tl.arange(0, BLOCK_N)
        k0 = load_rows(k, keys, kt, Tk, 0, D0, DH)
        k1 = k0
        if D1 > 0:
            k1 = load_rows(k, keys, kt, Tk, D0, D1, DH)
        s, dp = _s_dp(
            q0, q1, do0, do1, k0, k1, q, dout, rows, qt, H * DH, Tq, k, v, keys, kt, vt, Tk, scale, DH, D0, D1
        )  # fmt: skip
        new_top = tl.maximum(top, tl.max(s, 1))
        p = tl.exp2(s - new_top[:, None])
        shrink = tl.exp2(top - new_top)
        total = total * shrink + tl.sum(p, 1)
        row_delta = row_delta * shrink + tl.sum(p * dp, 1)
        top = new_top
    tl.store(delta + item * Tq + rows, row_delta / total, mask=rows < Tq)


@triton.jit
def _dq_kernel(
    dout, q, k, v, out, lse, dq, delta, norm, qn, qt, qh, kn, kt, kh, vn, vt, vh, dqn, dqt, dqh, Tq, Tk, H, scale,
    DH: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, UNIT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """EXACT: delta is there already. Otherwise it is rowsum(dout * out), and the rounding of `out` remains."""
    n, h, rows, item = _locate(Tq, H, BLOCK_M)
    q += (n * qn + h * qh) * UNIT
    k += (n * kn + h * kh) * UNIT
    v += (n * vn + h * vh) * UNIT
    dq += (n * dqn + h * dqh) * UNIT
    qt, kt, vt, dqt = qt * UNIT, kt * UNIT, vt * UNIT, dqt * UNIT
    dense = (n * Tq * H + h) * DH
    q0 = load_rows(q, rows, qt, Tq, 0, D0, DH)
    do0 = load_rows(dout + dense, rows, H * DH, Tq, 0, D0, DH)
    acc0 = tl.zeros((BLOCK_M, D0), tl.float32)
    q1, do1 = q0, do0
    if D1 > 0:
        q1 = load_rows(q, rows, qt, Tq, D0, D1, DH)
        do1 = load_rows(dout + dense, rows, H * DH, Tq, D0, D1, DH)
        acc1 = tl.zeros((BLOCK_M, D1), tl.float32)
    row_lse = tl.load(lse + item * Tq + rows, mask=rows < Tq, other=0.0) * LOG2E
    if EXACT:
        row_delta = tl.load(delta + item * Tq + rows, mask=rows < Tq, other=0.0)
    else:
        o0 = load_rows(out + dense, rows, H * DH, Tq, 0, D0, DH)
        row_delta = tl.sum(do0.to(tl.float32) * o0.to(tl.float32), 1)
        if D1 > 0:
            o1 = load_rows(out + dense, rows, H * DH, Tq, D0, D1, DH)
            row_delta += tl.sum(do1.to(tl.float32) * o1.to(tl.float32), 1)
        tl.store(delta + item * Tq + rows, row_delta, mask=rows < Tq)
    total = tl.zeros((BLOCK_M,), tl.float32)
    for start in range(0, Tk, BLOCK_N):
        keys = start + tl.arange(0, BLOCK_N)
        k0 = load_rows(k, keys, kt, Tk, 0, D0, DH)
        k1 = k0
        if D1 > 0:
            k1 = load_rows(k, keys, kt, Tk, D0, D1, DH)
        s, dp = _s_dp(
            q0, q1, do0, do1, k0, k1, q, dout + dense, rows, qt, H * DH, Tq, k, v, keys, kt, vt, Tk, scale, DH, D0, D1
        )  # fmt: skip
        p = tl.exp2(s - row_lse[:, None])
        total += tl.sum(p, 1)
        ds = (p * (dp - row_delta[:, None])).to(k.dtype.element_ty)
        acc0 = add_dot(acc0, ds, k0)
        if D1 > 0:
            acc1 = add_dot(acc1, ds, k1)
    row_norm = 1.0 / total
    store_rows(dq, rows, dqt, Tq, acc0 * (scale * row_norm)[:, None], 0, D0, DH)
    if D1 > 0:
        store_rows(dq, rows, dqt, Tq, acc1 * (scale * row_norm)[:, None], D0, D1, DH)
    tl.store(norm + item * Tq + rows, row_norm, mask=rows < Tq)


@triton.jit
def _dkdv_kernel(
    dout, q, k, v, lse, delta, norm, dk, dv, qn, qt, qh, kn, kt, kh, vn, vt, vh, dkn, dkt, dkh, dvn, dvt, dvh,
    Tq, Tk, H, scale,
    DH: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, UNIT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """Tiles are transposed, (BLOCK_N keys, BLOCK_M queries), so that P and dS are left operands as they stand.

    EXACT: S is summed in the order of the dq kernel and then transposed, since norm fits the bits of that S.
    """
    n, h, keys, item = _locate(Tk, H, BLOCK_N)
    q += (n * qn + h * qh) * UNIT
    k += (n * kn + h * kh) * UNIT
    v += (n * vn + h * vh) * UNIT
    dk += (n * dkn + h * dkh) * UNIT
    dv += (n * dvn + h * dvh) * UNIT
    qt, kt, vt, dkt, dvt = qt * UNIT, kt * UNIT, vt * UNIT, dkt * UNIT, dvt * UNIT
    dout += (n * Tq * H + h) * DH
    k0 = load_rows(k, keys, kt, Tk, 0, D0, DH)
    v0 = load_rows(v, keys, vt, Tk, 0, D0, DH)
    dk0 = tl.zeros((BLOCK_N, D0), tl.float32)
    dv0 = tl.zeros((BLOCK_N, D0), tl.float32)
    k1, v1 = k0, v0
    if D1 > 0:
        k1 = load_rows(k, keys, kt, Tk, D0, D1, DH)
        v1 = load_rows(v, keys, vt, Tk, D0, D1, DH)
        dk1 = tl.zeros((BLOCK_N, D1), tl.float32)
        dv1 = tl.zeros((BLOCK_N, D1), tl.float32)
    for start in range(0, Tq, BLOCK_M):
        rows = start + tl.arange(0, BLOCK_M)
        row_lse = tl.load(lse + item * Tq + rows, mask=rows < Tq, other=0.0) * LOG2E
        row_delta = tl.load(delta + item * Tq + rows, mask=rows < Tq, other=0.0)
        row_norm = tl.load(norm + item * Tq + rows, mask=rows < Tq, other=0.0)  # so P is 0 beyond Tq
        q0 = load_rows(q, rows, qt, Tq, 0, D0, DH)
        do0 = load_rows(dout, rows, H * DH, Tq, 0, D0, DH)
        q1, do1 = q0, do0
        if D1 > 0:
            q1 = load_rows(q, rows, qt, Tq, D0, D1, DH)
            do1 = load_rows(dout, rows, H * DH, Tq, D0, D1, DH)
        dp = rows_by_rows(v0, v1, do0, do1, v, keys, vt, Tk, dout, rows, H * DH, Tq, DH, D1)
        if EXACT:
            s = rows_by_rows(q0, q1, k0, k1, q, rows, qt, Tq, k, keys, kt, Tk, DH, D1).T
        else:
            s = rows_by_rows(k0, k1, q0, q1, k, keys, kt, Tk, q, rows, qt, Tq, DH, D1)
        # At most 0 but for rounding; of keys that do not exist, whose logit is 0, it may be anything.
        exponent = tl.minimum(s * (scale * LOG2E) - row_lse[None, :], 1.0)
        p = tl.exp2(exponent) * row_norm[None, :]
        ds = (p * (dp - row_delta[None, :])).to(k.dtype.element_ty)
        p = p.to(k.dtype.element_ty)
        dv0 = add_dot(dv0, p, do0)
        dk0 = add_dot(dk0, ds, q0)
        if D1 > 0:
            dv1 = add_dot(dv1, p, do1)
            dk1 = add_dot(dk1, ds, q1)
    store_rows(dk, keys, dkt, Tk, dk0 * scale, 0, D0, DH)
    store_rows(dv, keys, dvt, Tk, dv0, 0, D0, DH)
    if D1 > 0:
        store_rows(dk, keys, dkt, Tk, dk1 * scale, D0, D1, DH)
        store_rows(dv, keys, dvt, Tk, dv1, D0, D1, DH)


FEW_KEYS = 64
"""Up to this many, the backward sums delta from P * dP."""

HALF_TILES = {
    "forward": {128: (128, 64, 8, 2)},
    "delta": {128: (64, 32, 4, 2)},
    "dq": {64: (64, 64, 4, 2), 128: (64, 32, 4, 2)},
    "dkdv": {128: (32, 64, 4, 2)},
}
FLOAT32_TILE = (32, 32, 8, 1)
"""BLOCK_M, BLOCK_N, num_warps, num_stages, of 16-bit storage up to a head width. tests/kernels holds the registers of
each to a budget; none spills on sm_80, sm_90 or sm_100.

dkdv keeps two operands and two sums of them, of 64 keys (234 registers a thread at a width of 128, 255 at 96 on sm_80),
so it walks 32 queries at a time. A dq tile of 64 keys leaves no register at 72 (255), where one of 32 takes 168; delta
keeps no sum, and fits where dq does.

Exact float32 products are scalar, and a tile of 32 x 32 of 8 warps leaves a thread 4 of them.
"""


def split(dh: int, widest: int = 128) -> dict[str, int]:
    """Column blocks of a head: 64 -> 64 + 0, 72 -> 64 + 16, 104 -> 64 + 64, 8 -> 16 + 0; D0 is at most `widest`."""
    d0 = min(widest, max(16, 1 << (dh.bit_length() - 1)))
    return {"DH": dh, "D0": d0, "D1": max(16, triton.next_power_of_2(dh - d0)) if dh > d0 else 0}


def _tile(kernel: str, q: Tensor) -> dict[str, int]:
    dh = q.shape[-1]
    if q.dtype == torch.float32:  # the compiler holds blocks in registers: two of 64 fit at 128, one of 128 does not
        blocks, sizes = split(dh, 64), FLOAT32_TILE
    else:
        tiles = HALF_TILES[kernel]
        blocks, sizes = split(dh), tiles[min(width for width in tiles if dh <= width)]
    return blocks | dict(zip(("BLOCK_M", "BLOCK_N", "num_warps", "num_stages"), sizes, strict=True))


def _prepared(
    q: Tensor, k: Tensor, affine: Tensor | None, rope: Tensor | None, norm: int, eps: float
) -> tuple[Tensor, Tensor]:
    if norm == 0 and rope is None:
        return q, k
    rows = (None, None) if affine is None else affine.view(2, 2, -1)
    return prepare(q, rows[0], rope, norm, eps), prepare(k, rows[1], rope, norm, eps)


def forward(
    q: Tensor, k: Tensor | None, v: Tensor | None, affine: Tensor | None, rope: Tensor | None,
    scale: float, norm: int, eps: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    q, k, v = unpack(q, k, v)
    n, tq, h, dh = q.shape
    out = q.new_empty((n, tq, h * dh))
    lse = q.new_empty((n, h, tq), dtype=torch.float32)
    if out.numel():
        q, k = _prepared(q, k, affine, rope, norm, eps)
        tile = _tile("forward", q)
        unit, strides = units(q, k, v)
        grid = (n * h * triton.cdiv(tq, tile["BLOCK_M"]),)
        _forward_kernel[grid](q, k, v, out, lse, *strides, tq, k.shape[1], h, scale, UNIT=unit, **tile)
    return out, lse


def backward(
    dout: Tensor, q: Tensor, k: Tensor | None, v: Tensor | None, affine: Tensor | None, rope: Tensor | None,
    out: Tensor, lse: Tensor, scale: float, norm: int, eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    results = new_gradients(q, k, v)
    dq, dk, dv = views(*results)
    q, k, v = unpack(q, k, v)
    q_hat, k_hat = _prepared(q, k, affine, rope, norm, eps)
    _attention_backward(dout, q_hat, k_hat, v, out, lse, scale, dq, dk, dv)
    if norm == 0 and rope is None:
        return *results, lse.new_empty(0)
    rows = (None, None) if affine is None else affine.view(2, 2, -1)
    sums = [prepare_backward(x, dx, row, rope, norm, eps) for x, dx, row in ((q, dq, rows[0]), (k, dk, rows[1]))]
    return *results, torch.cat(sums)


def _attention_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float,
    dq: Tensor, dk: Tensor, dv: Tensor,
) -> None:  # fmt: skip
    n, tq, h, _ = q.shape
    tk = k.shape[1]
    delta, norm = torch.empty_like(lse), torch.empty_like(lse)
    if n * h * tq:
        # Few keys do not average the rounding of `out` away, and cost little; float32 is for those who look closely.
        exact = q.dtype == torch.float32 or tk <= FEW_KEYS
        if exact:
            tile = _tile("delta", q)
            unit, strides = units(q, k, v)
            grid = (n * h * triton.cdiv(tq, tile["BLOCK_M"]),)
            _delta_kernel[grid](dout, q, k, v, delta, *strides, tq, tk, h, scale, UNIT=unit, **tile)
        tile = _tile("dq", q)
        unit, strides = units(q, k, v, dq)
        grid = (n * h * triton.cdiv(tq, tile["BLOCK_M"]),)
        _dq_kernel[grid](
            dout, q, k, v, out, lse, dq, delta, norm, *strides, tq, tk, h, scale, UNIT=unit, EXACT=exact, **tile
        )
    if n * h * tk:
        unit, strides = units(q, k, v, dk, dv)
        tile = _tile("dkdv", q)
        grid = (n * h * triton.cdiv(tk, tile["BLOCK_N"]),)
        _dkdv_kernel[grid](
            dout, q, k, v, lse, delta, norm, dk, dv, *strides, tq, tk, h, scale, UNIT=unit,
            EXACT=q.dtype == torch.float32, **tile,
        )  # fmt: skip
