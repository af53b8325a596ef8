# SPDX-License-Identifier: Apache-2.0
"""Triton kernel of linear_gelu's backward. x, dx (M, K); weight, dweight (F, K); bias, dbias (F,); y, u, dy, du (M, F).

    u = x weight^T + bias,   y = u s,   s = sigmoid(2z),   z = sqrt(2/pi) (u + 0.044715 u^3)
    du = dy (s + 2 u s (1 - s) z'),   dx = du weight,   dweight = du^T x,   dbias = sum_M(du)

All products are PyTorch's vendor library's: on an H200 a Triton product with the GELU in its epilogue was slower than
that product and a GELU after it. Where u is not kept, cuBLASLt has the GELU in its epilogue.

du: a program walks `rows` rows of BLOCK_F columns, writes du in the storage dtype and its float32 sum of them, partial
(parts, F); these are added in order. Grid (parts, tiles of F); parts depends on M alone, so sums are the same in every
run. One pass over memory where PyTorch takes two. Saved for backward: x, weight, u.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

PARTS = 128
"""Most partial sums of dbias: enough programs for any GPU together with the tiles of F, and short to add up."""


@triton.jit
def _du_kernel(dy, u, du, partial, M, F, rows, BLOCK_M: tl.constexpr, BLOCK_F: tl.constexpr):
    """With e = exp(-2z): s = 1 / (1 + e) and s (1 - s) = e s^2, which lose no digit on either side of zero. Below -10
    the derivative is nothing, and e would overflow."""
    first = tl.program_id(0) * rows
    last = tl.minimum(first + rows, M)
    column = tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F)
    total = tl.zeros((BLOCK_M, BLOCK_F), tl.float32)
    for start in range(first, last, BLOCK_M):
        row = start + tl.arange(0, BLOCK_M)
        place = row.to(tl.int64)[:, None] * F + column[None, :]
        mask = (row[:, None] < last) & (column[None, :] < F)
        value = tl.load(u + place, mask=mask, other=0.0).to(tl.float32)
        value = tl.maximum(value, -10.0, propagate_nan=tl.PropagateNan.ALL)
        square = value * value
        e = tl.exp2(value * (-2.3022081988 - 0.1029432396 * square))  # -2z log2(e)
        s = 1.0 / (1.0 + e)
        slope = value * (1.5957691216 + 0.2140644488 * square)  # 2 u z'
        gradient = tl.load(dy + place, mask=mask, other=0.0).to(tl.float32) * (s + e * s * s * slope)
        tl.store(du + place, gradient.to(du.dtype.element_ty), mask=mask)
        total += gradient
    tl.store(partial + tl.program_id(0).to(tl.int64) * F + column, tl.sum(total, 0), mask=column < F)


_gelu = torch.ops.aten.gelu.out
_product_and_gelu = torch.ops.aten._addmm_activation.out


def forward(x: Tensor, weight: Tensor, bias: Tensor, keep: bool) -> tuple[Tensor, Tensor]:
    f, k = weight.shape
    m = x.shape[:-1].numel()
    y, u = x.new_empty((*x.shape[:-1], f)), x.new_empty((m if keep else 0, f))
    if y.numel() == 0:
        return y, u
    rows, given = y.view(m, f), (bias, x.view(m, k), weight.t())  # `out`: autocast does not touch it
    if x.is_cuda and not keep:  # on the CPU this GELU is the exact one, not its tanh form
        _product_and_gelu(*given, use_gelu=True, out=rows)
    else:
        product = torch.addmm(*given, out=u if keep else rows)
        _gelu(product, approximate="tanh", out=rows)
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
