# SPDX-License-Identifier: Apache-2.0
"""Triton kernels of adaln. x, h, dh, dx (N, T, D); shift, scale (N, D) with row strides; mean, rstd (N, T) float32.

    h  = xhat * (1 + scale) + shift,                     xhat = (x - mean) * rstd
    dx = rstd * (g - mean(g) - xhat * mean(g * xhat)),   g = dh * (1 + scale)

Forward: grid (N * T), a program normalises one token. Backward: grid (N * chunks), a program walks CHUNK tokens of
one sample, keeps the sums of dshift and dscale in registers and writes them once (triton_common.py). All arithmetic
is float32; saved for backward: x, scale, mean, rstd.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._core.triton_common import CHUNK, finish_token_sums, row_config


@triton.jit
def _forward_kernel(
    x, shift, scale, h, mean, rstd, T, D, shift_stride, scale_stride, eps, BLOCK_D: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    n = row // T
    column = tl.arange(0, BLOCK_D)
    mask = column < D
    value = tl.load(x + row * D + column, mask=mask, other=0.0).to(tl.float32)
    m = tl.sum(value, 0) / D
    centred = tl.where(mask, value - m, 0.0)
    r = 1.0 / tl.sqrt(tl.sum(centred * centred, 0) / D + eps)
    a = 1.0 + tl.load(scale + n * scale_stride + column, mask=mask, other=0.0).to(tl.float32)
    b = tl.load(shift + n * shift_stride + column, mask=mask, other=0.0).to(tl.float32)
    tl.store(h + row * D + column, (centred * r * a + b).to(h.dtype.element_ty), mask=mask)
    tl.store(mean + row, m)
    tl.store(rstd + row, r)


@triton.jit
def _backward_kernel(
    dh, x, scale, mean, rstd, dx, partial, T, D, chunks, scale_stride, CHUNK: tl.constexpr, BLOCK_D: tl.constexpr
):
    item = tl.program_id(0).to(tl.int64)
    n, chunk = item // chunks, item % chunks
    column = tl.arange(0, BLOCK_D)
    mask = column < D
    a = 1.0 + tl.load(scale + n * scale_stride + column, mask=mask, other=0.0).to(tl.float32)
    dshift = tl.zeros((BLOCK_D,), tl.float32)
    dscale = tl.zeros((BLOCK_D,), tl.float32)
    for t in range(chunk * CHUNK, tl.minimum((chunk + 1) * CHUNK, T)):
        row = n * T + t
        dh_row = tl.load(dh + row * D + column, mask=mask, other=0.0).to(tl.float32)
        r = tl.load(rstd + row)
        xhat = (tl.load(x + row * D + column, mask=mask, other=0.0).to(tl.float32) - tl.load(mean + row)) * r
        xhat = tl.where(mask, xhat, 0.0)
        g = dh_row * a
        dx_row = r * (g - tl.sum(g, 0) / D - xhat * (tl.sum(g * xhat, 0) / D))
        tl.store(dx + row * D + column, dx_row.to(dx.dtype.element_ty), mask=mask)
        dshift += dh_row
        dscale += dh_row * xhat
    tl.store(partial + item * 2 * D + column, dshift, mask=mask)
    tl.store(partial + item * 2 * D + D + column, dscale, mask=mask)


def forward(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    n, t, d = x.shape
    h = torch.empty_like(x)
    mean, rstd = (x.new_empty((n, t), dtype=torch.float32) for _ in range(2))
    if n * t:
        _forward_kernel[(n * t,)](
            x, shift, scale, h, mean, rstd, t, d, shift.stride(0), scale.stride(0), eps, **row_config(d)
        )
    return h, mean, rstd


def backward(
    dh: Tensor, x: Tensor, scale: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    n, t, d = x.shape
    chunks = triton.cdiv(t, CHUNK)
    dx = torch.empty_like(x)
    partial = x.new_empty((n, chunks, 2, d), dtype=torch.float32)
    if n * t:
        _backward_kernel[(n * chunks,)](
            dh, x, scale, mean, rstd, dx, partial, t, d, chunks, scale.stride(0), CHUNK=CHUNK, **row_config(d)
        )
    dshift, dscale = finish_token_sums(partial, x.dtype)
    return dx, dshift, dscale
