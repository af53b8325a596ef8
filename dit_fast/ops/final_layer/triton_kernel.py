# SPDX-License-Identifier: Apache-2.0
"""Triton kernels of final_layer. x, dx (N, T, D); shift, scale (N, D) with row strides, or None: then h = x; weight
(O, D), O = p*p*C; bias (O,); out, dout (N, C, h*p, w*p); mean, rstd (N, T) float32.

    h = xhat * (1 + scale) + shift,   xhat = (x - mean) * rstd,   y = h weight^T + bias,   y laid out as an image
    dh = dy weight,   dweight = sum_NT dy^T h,   dbias = sum_NT dy,   dshift = sum_T dh,   dscale = sum_T dh * xhat
    dx = rstd * (g - mean(g) - xhat * mean(g * xhat)),   g = dh * (1 + scale)

A tile is BLOCK_T tokens of one sample; D is walked in steps of BLOCK_D, a tile's rows of x staying in the cache from
one walk to the next. Forward: grid (N * tiles, O tiles): a walk for the mean, one for rstd, one for the product.
dx, dshift, dscale: grid (N * tiles): a walk for the two means of a row and the tile's sums over tokens, written as
partial (N, tiles, 2, D), and a walk for dx; dh is made in both, nothing of its size is stored.
dweight, dbias: grid (splits, O tiles, D tiles): a program makes h again for the tiles of its split and writes partial
sums (splits, O, D) and (splits, O). Partial sums are float32 and added in order afterwards (triton_common.py); tiles
and splits depend on shapes only. h is rounded to the storage dtype before a product, as eager PyTorch rounds it; all
else is float32. Saved for backward: x, shift, scale, weight, mean, rstd.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._core.triton_common import add_dot, finish_token_sums

BLOCK_T = 32
MAX_SPLITS = 32
"""Bounds the partial sums of dweight to 32 times its size."""


@triton.jit
def _corner(n, t, height, width, P, C):
    """Offset of the first pixel of a token's patch in the image."""
    return ((n * C * height + t // width) * P * width + t % width) * P


@triton.jit
def _pixel(o, height, width, P, C):
    """Offset from there of feature o in (row, column, channel) order."""
    place = o // C
    return (o % C) * (height * P * width * P) + (place // P) * (width * P) + place % P


@triton.jit
def _modulated(x, n, rows, mean, rstd, shift, scale, shift_stride, scale_stride, column, mask, column_mask):
    """xhat and 1 + scale and h of a (BLOCK_T, BLOCK_D) tile; `rows` are offsets of its rows in x."""
    value = tl.load(x + rows[:, None] + column[None, :], mask=mask, other=0.0).to(tl.float32)
    xhat = tl.where(mask, (value - mean[:, None]) * rstd[:, None], 0.0)
    a = 1.0 + tl.load(scale + n * scale_stride + column, mask=column_mask, other=0.0).to(tl.float32)
    b = tl.load(shift + n * shift_stride + column, mask=column_mask, other=0.0).to(tl.float32)
    return xhat, a, xhat * a[None, :] + b[None, :]


@triton.jit
def _forward_kernel(
    x, shift, scale, weight, bias, out, mean, rstd, T, D, features, C, P, height, width, tiles,
    shift_stride, scale_stride, eps,
    MODULATED: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_O: tl.constexpr,
):  # fmt: skip
    n = (tl.program_id(0) // tiles).to(tl.int64)
    t = tl.program_id(0) % tiles * BLOCK_T + tl.arange(0, BLOCK_T)
    o = tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)
    t_mask, o_mask = t < T, o < features
    rows = (n * T + t) * D
    m = tl.zeros((BLOCK_T,), tl.float32)
    r = tl.zeros((BLOCK_T,), tl.float32)
    if MODULATED:
        for first in range(0, D, BLOCK_D):
            column = first + tl.arange(0, BLOCK_D)
            mask = t_mask[:, None] & (column < D)[None, :]
            m += tl.sum(tl.load(x + rows[:, None] + column[None, :], mask=mask, other=0.0).to(tl.float32), 1)
        m = m / D
        for first in range(0, D, BLOCK_D):
            column = first + tl.arange(0, BLOCK_D)
            mask = t_mask[:, None] & (column < D)[None, :]
            value = tl.load(x + rows[:, None] + column[None, :], mask=mask, other=0.0).to(tl.float32)
            centred = tl.where(mask, value - m[:, None], 0.0)
            r += tl.sum(centred * centred, 1)
        r = 1.0 / tl.sqrt(r / D + eps)
        if tl.program_id(1) == 0:
            tl.store(mean + n * T + t, m, mask=t_mask)
            tl.store(rstd + n * T + t, r, mask=t_mask)
    y = tl.zeros((BLOCK_T, BLOCK_O), tl.float32)
    for first in range(0, D, BLOCK_D):
        column = first + tl.arange(0, BLOCK_D)
        column_mask = column < D
        mask = t_mask[:, None] & column_mask[None, :]
        if MODULATED:
            _xhat, _a, h = _modulated(
                x, n, rows, m, r, shift, scale, shift_stride, scale_stride, column, mask, column_mask
            )
            h = h.to(x.dtype.element_ty)
        else:
            h = tl.load(x + rows[:, None] + column[None, :], mask=mask, other=0.0)
        w = tl.load(
            weight + o[None, :] * D + column[:, None], mask=o_mask[None, :] & column_mask[:, None], other=0.0
        )
        y = add_dot(y, h, w)
    y += tl.load(bias + o, mask=o_mask, other=0.0).to(tl.float32)[None, :]
    to = out + _corner(n, t, height, width, P, C)[:, None] + _pixel(o, height, width, P, C)[None, :]
    tl.store(to, y.to(out.dtype.element_ty), mask=t_mask[:, None] & o_mask[None, :])


@triton.jit
def _dh(dout, corner, weight, column, t_mask, column_mask, D, features, C, P, height, width,
        BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_O: tl.constexpr):  # fmt: skip
    """dy weight for a (BLOCK_T, BLOCK_D) tile, float32; rows and columns outside are zero."""
    dh = tl.zeros((BLOCK_T, BLOCK_D), tl.float32)
    for first in range(0, features, BLOCK_O):
        o = first + tl.arange(0, BLOCK_O)
        o_mask = o < features
        dy = tl.load(
            dout + corner[:, None] + _pixel(o, height, width, P, C)[None, :],
            mask=t_mask[:, None] & o_mask[None, :], other=0.0,
        )  # fmt: skip
        w = tl.load(
            weight + o[:, None] * D + column[None, :], mask=o_mask[:, None] & column_mask[None, :], other=0.0
        )
        dh = add_dot(dh, dy, w)
    return dh


@triton.jit
def _token_kernel(
    dout, x, shift, scale, weight, mean, rstd, dx, partial, T, D, features, C, P, height, width, tiles,
    shift_stride, scale_stride,
    MODULATED: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_O: tl.constexpr,
):  # fmt: skip
    item = tl.program_id(0).to(tl.int64)
    n = item // tiles
    t = item % tiles * BLOCK_T + tl.arange(0, BLOCK_T)
    t_mask = t < T
    rows = (n * T + t) * D
    corner = _corner(n, t, height, width, P, C)
    m = tl.zeros((BLOCK_T,), tl.float32)
    r = tl.zeros((BLOCK_T,), tl.float32)
    mean_g = tl.zeros((BLOCK_T,), tl.float32)
    mean_gx = tl.zeros((BLOCK_T,), tl.float32)
    if MODULATED:
        m = tl.load(mean + n * T + t, mask=t_mask, other=0.0)
        r = tl.load(rstd + n * T + t, mask=t_mask, other=0.0)
        for first in range(0, D, BLOCK_D):
            column = first + tl.arange(0, BLOCK_D)
            column_mask = column < D
            mask = t_mask[:, None] & column_mask[None, :]
            dh = _dh(
                dout, corner, weight, column, t_mask, column_mask, D, features, C, P, height, width,
                BLOCK_T, BLOCK_D, BLOCK_O,
            )  # fmt: skip
            xhat, a, _h = _modulated(
                x, n, rows, m, r, shift, scale, shift_stride, scale_stride, column, mask, column_mask
            )
            mean_g += tl.sum(dh * a[None, :], 1)
            mean_gx += tl.sum(dh * a[None, :] * xhat, 1)
            tl.store(partial + item * 2 * D + column, tl.sum(dh, 0), mask=column_mask)
            tl.store(partial + item * 2 * D + D + column, tl.sum(dh * xhat, 0), mask=column_mask)
        mean_g, mean_gx = mean_g / D, mean_gx / D
    for first in range(0, D, BLOCK_D):
        column = first + tl.arange(0, BLOCK_D)
        column_mask = column < D
        mask = t_mask[:, None] & column_mask[None, :]
        value = _dh(
            dout, corner, weight, column, t_mask, column_mask, D, features, C, P, height, width,
            BLOCK_T, BLOCK_D, BLOCK_O,
        )  # fmt: skip
        if MODULATED:
            xhat, a, _h = _modulated(
                x, n, rows, m, r, shift, scale, shift_stride, scale_stride, column, mask, column_mask
            )
            value = r[:, None] * (value * a[None, :] - mean_g[:, None] - xhat * mean_gx[:, None])
        tl.store(dx + rows[:, None] + column[None, :], value.to(dx.dtype.element_ty), mask=mask)


@triton.jit
def _weight_kernel(
    dout, x, shift, scale, mean, rstd, partial, bias_partial, T, D, features, C, P, height, width, tiles,
    items, items_a_split, shift_stride, scale_stride,
    MODULATED: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_O: tl.constexpr,
):  # fmt: skip
    split = tl.program_id(0).to(tl.int64)
    o = tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)
    column = tl.program_id(2) * BLOCK_D + tl.arange(0, BLOCK_D)
    o_mask, column_mask = o < features, column < D
    pixel = _pixel(o, height, width, P, C)
    total = tl.zeros((BLOCK_O, BLOCK_D), tl.float32)
    bias_total = tl.zeros((BLOCK_O,), tl.float32)
    for item in range(split * items_a_split, tl.minimum((split + 1) * items_a_split, items)):
        n = item // tiles
        t = item % tiles * BLOCK_T + tl.arange(0, BLOCK_T)
        t_mask = t < T
        rows = (n * T + t) * D
        mask = t_mask[:, None] & column_mask[None, :]
        if MODULATED:
            m = tl.load(mean + n * T + t, mask=t_mask, other=0.0)
            r = tl.load(rstd + n * T + t, mask=t_mask, other=0.0)
            _xhat, _a, h = _modulated(
                x, n, rows, m, r, shift, scale, shift_stride, scale_stride, column, mask, column_mask
            )
            h = h.to(x.dtype.element_ty)
        else:
            h = tl.load(x + rows[:, None] + column[None, :], mask=mask, other=0.0)
        dy = tl.load(
            dout + _corner(n, t, height, width, P, C)[:, None] + pixel[None, :],
            mask=t_mask[:, None] & o_mask[None, :], other=0.0,
        )  # fmt: skip
        total = add_dot(total, tl.trans(dy), h)
        bias_total += tl.sum(dy.to(tl.float32), 0)
    to = partial + (split * features + o)[:, None] * D + column[None, :]
    tl.store(to, total, mask=o_mask[:, None] & column_mask[None, :])
    if tl.program_id(2) == 0:
        tl.store(bias_partial + split * features + o, bias_total, mask=o_mask)


def _sizes(x: Tensor, weight: Tensor, height: int, width: int, patch: int) -> dict[str, int]:
    features, (_, t, d) = weight.shape[0], x.shape
    return {
        "T": t, "D": d, "features": features, "C": features // (patch * patch), "P": patch,
        "height": height, "width": width, "tiles": triton.cdiv(t, BLOCK_T),
    }  # fmt: skip


def _modulation(x: Tensor, shift: Tensor | None, scale: Tensor | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Tensor arguments (x stands in for what is not read) and the others."""
    if shift is None or scale is None:
        return {"shift": x, "scale": x}, {"shift_stride": 0, "scale_stride": 0, "MODULATED": False}
    strides = {"shift_stride": shift.stride(0), "scale_stride": scale.stride(0)}
    return {"shift": shift, "scale": scale}, {**strides, "MODULATED": True}


def _config(features: int, dtype: torch.dtype) -> dict[str, int]:
    """Tiles: tl.dot needs 16 features, more than 64 only cost registers; exact float32 products need more of them, so D
    is halved there. 8 warps hold these tiles in registers."""
    block = min(64, max(16, triton.next_power_of_2(features)))
    return {
        "BLOCK_T": BLOCK_T, "BLOCK_D": 64 if dtype == torch.float32 else 128, "BLOCK_O": block, "num_warps": 8,
    }  # fmt: skip


def forward(
    x: Tensor,
    shift: Tensor | None,
    scale: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    height: int,
    width: int,
    patch: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    n, s, config = x.shape[0], _sizes(x, weight, height, width, patch), _config(weight.shape[0], x.dtype)
    tensors, modulation = _modulation(x, shift, scale)
    out = x.new_empty((n, s["C"], height * patch, width * patch))
    mean, rstd = (x.new_empty((n, s["T"]) if scale is not None else (0,), dtype=torch.float32) for _ in range(2))
    if out.numel():
        _forward_kernel[(n * s["tiles"], triton.cdiv(s["features"], config["BLOCK_O"]))](
            x, **tensors, weight=weight, bias=bias, out=out, mean=mean, rstd=rstd, **s, **modulation, eps=eps,
            **config,
        )  # fmt: skip
    return out, mean, rstd


def backward(
    dout: Tensor,
    x: Tensor,
    shift: Tensor | None,
    scale: Tensor | None,
    weight: Tensor,
    mean: Tensor,
    rstd: Tensor,
    height: int,
    width: int,
    patch: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    n, d, features = x.shape[0], x.shape[2], weight.shape[0]
    s, config = _sizes(x, weight, height, width, patch), _config(features, x.dtype)
    tensors, modulation = _modulation(x, shift, scale)
    given = {"dout": dout, "x": x, **tensors, "mean": mean, "rstd": rstd, **s, **modulation, **config}
    items = n * s["tiles"]
    items_a_split = max(4, triton.cdiv(items, MAX_SPLITS))
    splits = triton.cdiv(items, items_a_split)
    dx = torch.empty_like(x)
    partial = x.new_empty((n if scale is not None else 0, s["tiles"], 2, d), dtype=torch.float32)
    weight_partial = x.new_empty((1, splits, 1, features * d), dtype=torch.float32)
    bias_partial = x.new_empty((1, splits, 1, features), dtype=torch.float32)
    if items:
        _token_kernel[(items,)](**given, weight=weight, dx=dx, partial=partial)
        _weight_kernel[(splits, triton.cdiv(features, config["BLOCK_O"]), triton.cdiv(d, config["BLOCK_D"]))](
            **given, partial=weight_partial, bias_partial=bias_partial, items=items, items_a_split=items_a_split
        )
    dshift, dscale = finish_token_sums(partial, x.dtype) if scale is not None else (x.new_empty((0,)) for _ in "ab")
    (dweight,), (dbias,) = (finish_token_sums(p, x.dtype) for p in (weight_partial, bias_partial))
    return dx, dshift, dscale, dweight.view(features, d), dbias.view(features)
