# SPDX-License-Identifier: Apache-2.0
"""Triton kernels of patch_embed. x, dx (N, C, H, W); weight, dweight (D, C, p, p), K = C*p*p; bias, dbias (D,);
pos, dpos (T, D); out, dout (N, T, D). "Tokens" are the N * T patches.

    out[n, t] = weight patch(n, t) + bias + pos[t],             dpatch(n, t) = weight^T dout[n, t]
    dweight   = sum_NT dout[n, t] patch(n, t)^T,   dbias = sum_NT dout[n, t],   dpos[t] = sum_N dout[n, t]

Forward: grid (token tiles, D tiles), K in steps of 16 or more; pixels are loaded straight from the image.
dweight, dbias: grid (splits, K tiles, D tiles); a program owns the token tiles of one split and writes float32 partial
sums (splits, D, K) and (splits, D), added in order afterwards (triton_common.py); the number of splits depends on the
number of tokens only. dpos: grid (T, D tiles). dx: grid (token tiles, K tiles), D in steps.
Products take their operands in the storage dtype (float32 in full precision) and are summed in float32; saved for
backward: x, weight.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._core.triton_common import add_dot, finish_token_sums

BLOCK_T = 64
MAX_SPLITS = 32
"""Bounds the partial sums of dweight to 32 times its size."""


def _config(k: int, dtype: torch.dtype) -> dict[str, int]:
    """Tiles: tl.dot needs 16 pixels of a patch, more than 64 only cost registers; exact float32 products need more of
    them, so D is halved there. 8 warps hold these tiles in registers."""
    block_k = min(64, max(16, triton.next_power_of_2(k)))
    return {
        "BLOCK_T": BLOCK_T, "BLOCK_D": 64 if dtype == torch.float32 else 128, "BLOCK_K": block_k, "num_warps": 8,
    }  # fmt: skip


@triton.jit
def _corner(token, T, grid_w, P, C):
    """Offset of the first pixel of a token's patch in the image."""
    n, t = token.to(tl.int64) // T, token % T
    return ((n * C * (T // grid_w) + t // grid_w) * P * grid_w + t % grid_w) * P


@triton.jit
def _pixel(k, T, grid_w, P):
    """Offset from there of pixel k in (channel, row, column) order."""
    plane = T * P * P
    return (k // (P * P)) * plane + (k // P % P) * (grid_w * P) + k % P


@triton.jit
def _forward_kernel(
    x, weight, bias, pos, out, tokens, T, C, D, K, P, grid_w,
    HAS_BIAS: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    column = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    token_mask, column_mask = token < tokens, column < D
    corner = _corner(token, T, grid_w, P, C)
    total = tl.zeros((BLOCK_T, BLOCK_D), tl.float32)
    for first in range(0, K, BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)
        k_mask = k < K
        patch = tl.load(
            x + corner[:, None] + _pixel(k, T, grid_w, P)[None, :],
            mask=token_mask[:, None] & k_mask[None, :], other=0.0,
        )  # fmt: skip
        w = tl.load(
            weight + column[None, :] * K + k[:, None], mask=column_mask[None, :] & k_mask[:, None], other=0.0
        )
        total = add_dot(total, patch, w)
    if HAS_BIAS:
        total += tl.load(bias + column, mask=column_mask, other=0.0).to(tl.float32)[None, :]
    mask = token_mask[:, None] & column_mask[None, :]
    total += tl.load(pos + (token % T)[:, None] * D + column[None, :], mask=mask, other=0.0).to(tl.float32)
    to = out + token.to(tl.int64)[:, None] * D + column[None, :]
    tl.store(to, total.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _weight_kernel(
    dout, x, partial, bias_partial, tokens, T, C, D, K, P, grid_w, tiles,
    BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    split, k_tile = tl.program_id(0), tl.program_id(1)
    k = k_tile * BLOCK_K + tl.arange(0, BLOCK_K)
    column = tl.program_id(2) * BLOCK_D + tl.arange(0, BLOCK_D)
    k_mask, column_mask = k < K, column < D
    pixel = _pixel(k, T, grid_w, P)
    total = tl.zeros((BLOCK_D, BLOCK_K), tl.float32)
    bias_total = tl.zeros((BLOCK_D,), tl.float32)
    for tile in range(split * tiles, (split + 1) * tiles):
        token = tile * BLOCK_T + tl.arange(0, BLOCK_T)
        token_mask = token < tokens
        patch = tl.load(
            x + _corner(token, T, grid_w, P, C)[:, None] + pixel[None, :],
            mask=token_mask[:, None] & k_mask[None, :], other=0.0,
        )  # fmt: skip
        g = tl.load(
            dout + token.to(tl.int64)[:, None] * D + column[None, :],
            mask=token_mask[:, None] & column_mask[None, :], other=0.0,
        )  # fmt: skip
        total = add_dot(total, tl.trans(g), patch)
        bias_total += tl.sum(g.to(tl.float32), 0)
    to = partial + (split.to(tl.int64) * D + column)[:, None] * K + k[None, :]
    tl.store(to, total, mask=column_mask[:, None] & k_mask[None, :])
    if k_tile == 0:
        tl.store(bias_partial + split * D + column, bias_total, mask=column_mask)


@triton.jit
def _pos_kernel(dout, dpos, N, T, D, BLOCK_D: tl.constexpr):
    t = tl.program_id(0)
    column = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    mask = column < D
    total = tl.zeros((BLOCK_D,), tl.float32)
    for n in range(N):
        row = (n * T + t).to(tl.int64)
        total += tl.load(dout + row * D + column, mask=mask, other=0.0).to(tl.float32)
    tl.store(dpos + t * D + column, total.to(dpos.dtype.element_ty), mask=mask)


@triton.jit
def _image_kernel(
    dout, weight, dx, tokens, T, C, D, K, P, grid_w,
    BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    k = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    token_mask, k_mask = token < tokens, k < K
    total = tl.zeros((BLOCK_T, BLOCK_K), tl.float32)
    for first in range(0, D, BLOCK_D):
        column = first + tl.arange(0, BLOCK_D)
        column_mask = column < D
        g = tl.load(
            dout + token.to(tl.int64)[:, None] * D + column[None, :],
            mask=token_mask[:, None] & column_mask[None, :], other=0.0,
        )  # fmt: skip
        w = tl.load(
            weight + column[:, None] * K + k[None, :], mask=column_mask[:, None] & k_mask[None, :], other=0.0
        )
        total = add_dot(total, g, w)
    to = dx + _corner(token, T, grid_w, P, C)[:, None] + _pixel(k, T, grid_w, P)[None, :]
    tl.store(to, total.to(dx.dtype.element_ty), mask=token_mask[:, None] & k_mask[None, :])


def _sizes(x: Tensor, weight: Tensor) -> dict[str, int]:
    d, c, p, _ = weight.shape
    n, _, height, width = x.shape
    t = (height // p) * (width // p)
    return {"tokens": n * t, "T": t, "C": c, "D": d, "K": c * p * p, "P": p, "grid_w": width // p}


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, pos: Tensor) -> Tensor:
    s = _sizes(x, weight)
    config = _config(s["K"], x.dtype)
    out = x.new_empty((x.shape[0], s["T"], s["D"]))
    if out.numel():
        grid = (triton.cdiv(s["tokens"], BLOCK_T), triton.cdiv(s["D"], config["BLOCK_D"]))
        given = weight if bias is None else bias
        _forward_kernel[grid](x, weight, given, pos, out, **s, HAS_BIAS=bias is not None, **config)
    return out


def _weight_gradient(dout: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    s = _sizes(x, weight)
    d, k, config = s["D"], s["K"], _config(s["K"], x.dtype)
    tiles = triton.cdiv(s["tokens"], BLOCK_T)
    tiles_a_split = max(2, triton.cdiv(tiles, MAX_SPLITS))
    splits = triton.cdiv(tiles, tiles_a_split)
    partial = x.new_empty((1, splits, 1, d * k), dtype=torch.float32)
    bias_partial = x.new_empty((1, splits, 1, d), dtype=torch.float32)
    if splits:
        grid = (splits, triton.cdiv(k, config["BLOCK_K"]), triton.cdiv(d, config["BLOCK_D"]))
        _weight_kernel[grid](dout, x, partial, bias_partial, **s, tiles=tiles_a_split, **config)
    (dweight,), (dbias,) = (finish_token_sums(p, x.dtype) for p in (partial, bias_partial))
    return dweight.view(weight.shape), dbias.view(d)


def backward(
    dout: Tensor, x: Tensor, weight: Tensor, needed: list[bool]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    s = _sizes(x, weight)
    config = _config(s["K"], x.dtype)
    dx, dweight, dbias, dpos = (x.new_empty((0,)) for _ in range(4))
    if needed[0]:
        dx = torch.empty_like(x)
        if dx.numel():
            grid = (triton.cdiv(s["tokens"], BLOCK_T), triton.cdiv(s["K"], config["BLOCK_K"]))
            _image_kernel[grid](dout, weight, dx, **s, **config)
    if needed[1] or needed[2]:
        both = _weight_gradient(dout, x, weight)
        dweight = both[0] if needed[1] else dweight
        dbias = both[1] if needed[2] else dbias
    if needed[3]:
        dpos = x.new_empty((s["T"], s["D"]))
        _pos_kernel[(s["T"], triton.cdiv(s["D"], 256))](dout, dpos, x.shape[0], s["T"], s["D"], BLOCK_D=256)
    return dx, dweight, dbias, dpos
