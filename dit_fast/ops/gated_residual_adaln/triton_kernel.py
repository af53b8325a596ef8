# SPDX-License-Identifier: Apache-2.0
"""Triton kernels of gated_residual_adaln. x, y, x_new, h and their gradients (N, T, D); gate, shift, scale
(N, D) with row strides; mean, rstd (N, T) float32.

    x_new = round(x + gate * y),   h = xhat * (1 + scale) + shift,   xhat = (x_new - mean) * rstd
    dx = dx_new + rstd * (g - mean(g) - xhat * mean(g * xhat)),   g = dh * (1 + scale),   dy = dx * gate
    dgate = sum_T(dx * y),   dshift = sum_T(dh),   dscale = sum_T(dh * xhat)

Forward: grid (N * T), a program makes one token.
Backward: grid (N * chunks), a program walks CHUNK tokens of one sample, keeps its three rows of sums in
registers and writes them once (triton_common.py). dx_new may be None: zero.
All arithmetic is float32, and dy and dgate take dx before it is rounded; saved for backward: x_new, y, gate,
scale, mean, rstd.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._core.triton_common import CHUNK, finish_token_sums, row_config


@triton.jit
def _forward_kernel(
    x, y, gate, shift, scale, x_new, h, mean, rstd, T, D, gate_stride, shift_stride, scale_stride, eps,
    BLOCK_D: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    n = row // T
    column = tl.arange(0, BLOCK_D)
    mask = column < D
    at = row * D + column
    c = tl.load(gate + n * gate_stride + column, mask=mask, other=0.0).to(tl.float32)
    value = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
    value += c * tl.load(y + at, mask=mask, other=0.0).to(tl.float32)
    stored = value.to(x_new.dtype.element_ty)
    tl.store(x_new + at, stored, mask=mask)
    value = stored.to(tl.float32)  # the norm sees the rounded value
    m = tl.sum(value, 0) / D
    centred = tl.where(mask, value - m, 0.0)
    r = 1.0 / tl.sqrt(tl.sum(centred * centred, 0) / D + eps)
    a = 1.0 + tl.load(scale + n * scale_stride + column, mask=mask, other=0.0).to(tl.float32)
    b = tl.load(shift + n * shift_stride + column, mask=mask, other=0.0).to(tl.float32)
    tl.store(h + at, (centred * r * a + b).to(h.dtype.element_ty), mask=mask)
    tl.store(mean + row, m)
    tl.store(rstd + row, r)


@triton.jit
def _backward_kernel(
    dx_new, dh, x_new, y, gate, scale, mean, rstd, dx, dy, partial, T, D, chunks, gate_stride, scale_stride,
    CHUNK: tl.constexpr, BLOCK_D: tl.constexpr,
):
    item = tl.program_id(0).to(tl.int64)
    n, chunk = item // chunks, item % chunks
    column = tl.arange(0, BLOCK_D)
    mask = column < D
    c = tl.load(gate + n * gate_stride + column, mask=mask, other=0.0).to(tl.float32)
    a = 1.0 + tl.load(scale + n * scale_stride + column, mask=mask, other=0.0).to(tl.float32)
    dgate = tl.zeros((BLOCK_D,), tl.float32)
    dshift = tl.zeros((BLOCK_D,), tl.float32)
    dscale = tl.zeros((BLOCK_D,), tl.float32)
    for t in range(chunk * CHUNK, tl.minimum((chunk + 1) * CHUNK, T)):
        row = n * T + t
        at = row * D + column
        dh_row = tl.load(dh + at, mask=mask, other=0.0).to(tl.float32)
        r = tl.load(rstd + row)
        xhat = (tl.load(x_new + at, mask=mask, other=0.0).to(tl.float32) - tl.load(mean + row)) * r
        xhat = tl.where(mask, xhat, 0.0)
        g = dh_row * a
        dx_row = r * (g - tl.sum(g, 0) / D - xhat * (tl.sum(g * xhat, 0) / D))
        if dx_new is not None:
            dx_row += tl.load(dx_new + at, mask=mask, other=0.0).to(tl.float32)
        tl.store(dx + at, dx_row.to(dx.dtype.element_ty), mask=mask)
        tl.store(dy + at, (dx_row * c).to(dy.dtype.element_ty), mask=mask)
        dgate += dx_row * tl.load(y + at, mask=mask, other=0.0).to(tl.float32)
        dshift += dh_row
        dscale += dh_row * xhat
    sums = partial + item * 3 * D + column
    tl.store(sums, dgate, mask=mask)
    tl.store(sums + D, dshift, mask=mask)
    tl.store(sums + 2 * D, dscale, mask=mask)


def forward(
    x: Tensor, y: Tensor, gate: Tensor, shift: Tensor, scale: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    n, t, d = x.shape
    x_new, h = torch.empty_like(x), torch.empty_like(x)
    mean, rstd = (x.new_empty((n, t), dtype=torch.float32) for _ in range(2))
    strides = gate.stride(0), shift.stride(0), scale.stride(0)
    if n * t:
        _forward_kernel[(n * t,)](
            x, y, gate, shift, scale, x_new, h, mean, rstd, t, d, *strides, eps, **row_config(d)
        )
    return x_new, h, mean, rstd


def backward(
    dx_new: Tensor | None,
    dh: Tensor,
    x_new: Tensor,
    y: Tensor,
    gate: Tensor,
    scale: Tensor,
    mean: Tensor,
    rstd: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    n, t, d = x_new.shape
    chunks = triton.cdiv(t, CHUNK)
    dx, dy = torch.empty_like(x_new), torch.empty_like(x_new)
    partial = x_new.new_empty((n, chunks, 3, d), dtype=torch.float32)
    strides = gate.stride(0), scale.stride(0)
    if n * t:
        _backward_kernel[(n * chunks,)](
            dx_new, dh, x_new, y, gate, scale, mean, rstd, dx, dy, partial, t, d, chunks, *strides,
            CHUNK=CHUNK, **row_config(d),
        )
    dgate, dshift, dscale = finish_token_sums(partial, x_new.dtype)
    return dx, dy, dgate, dshift, dscale
