# SPDX-License-Identifier: Apache-2.0
"""What the Triton kernels of the AdaLN family share.

Sums over the tokens of a sample are deterministic: a program owns CHUNK tokens of one sample and writes K rows of D
float32 sums, partial[n, chunk, k, :]; a second kernel adds the chunks in order and rounds once. No atomics.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

CHUNK = 32
"""Tokens per program of a backward: 8 programs a sample at T = 256."""


def row_config(d: int) -> dict[str, int]:
    """Tile of a kernel that holds whole rows: BLOCK_D covers D, one warp for each 512 lanes."""
    block = triton.next_power_of_2(d)
    return {"BLOCK_D": block, "num_warps": min(8, max(1, block // 512))}


@triton.jit
def _finish_kernel(partial, out0, out1, out2, chunks, D, K: tl.constexpr, BLOCK: tl.constexpr):
    """Grid (N, cdiv(D, BLOCK)): one program sums BLOCK columns of one sample over the chunks, for each k."""
    n, column = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = column < D
    for k in tl.static_range(K):
        total = tl.zeros((BLOCK,), tl.float32)
        for c in range(chunks):
            total += tl.load(partial + ((n * chunks + c) * K + k) * D + column, mask=mask, other=0.0)
        out = out0 if k == 0 else (out1 if k == 1 else out2)
        tl.store(out + n * D + column, total.to(out0.dtype.element_ty), mask=mask)


def finish_token_sums(partial: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """(N, chunks, K, D) float32 partial sums, K up to 3 -> K tensors (N, D) of `dtype`."""
    n, chunks, k, d = partial.shape
    out = [partial.new_empty((n, d), dtype=dtype) for _ in range(k)]
    if n * d:
        padded = (*out, *out[:1] * (3 - k))
        _finish_kernel[(n, triton.cdiv(d, 256))](partial, *padded, chunks, d, K=k, BLOCK=256)
    return tuple(out)


@triton.jit
def add_dot(acc, a, b):
    """acc + a b, float32 sums. Products of float32 are exact, and summed by themselves before they are added to acc:
    one chain of roundings over all of K is several times as far from the exact sum as the blocks of a vendor's library.
    """
    if a.dtype == tl.float32:
        # The limit means nothing here, but a dot without one is folded into the addition, and the chain is back.
        return acc + tl.dot(a, b, input_precision="ieee", max_num_imprecise_acc=1)
    return tl.dot(a, b, acc)
