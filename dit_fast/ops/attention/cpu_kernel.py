# SPDX-License-Identifier: Apache-2.0
"""The `cpu` backend of attention: PyTorch's own kernels for the CPU, called on views.

Forward: the flash kernel behind scaled_dot_product_attention. It takes (N, H, T, Dh) with any strides, writes out as
(N, T, H, Dh) in memory and sums in float32. It divides by the number of tokens, so an empty input does not reach it.

Backward: products of whole rows of P in float32, for as many heads and samples at a time as keep P small. PyTorch's
flash backward is not used: without bfloat16 instructions it is 7 times slower than this, and its dq has twice the
error of eager PyTorch's in float32 and four times in bfloat16 at two keys (it takes dout . out for the sum of P * dP,
after out was rounded). P is made from q and k again, so lse is not read.
"""

import torch
from torch import Tensor

from .._core import without_autocast
from .heads import new_gradients, unpack, views

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default

TILE = 1 << 19
"""Elements of P held at a time: 8 heads of 256 x 256, 2 MB. 16 MB, beyond the caches, took 1.3 to 1.9 times as long."""


def forward(q: Tensor, k: Tensor | None, v: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    q, k, v = unpack(q, k, v)
    n, t, h, dh = q.shape
    if q.numel() == 0:
        return q.new_empty((n, t, h * dh)), q.new_empty((n, h, t), dtype=torch.float32)
    out, lse = _flash(*(x.transpose(1, 2) for x in (q, k, v)), scale=scale)  # (N, H, Tq, Dh), (N, H, Tq)
    return out.transpose(1, 2).reshape(n, t, h * dh), lse.contiguous()


def backward(
    dout: Tensor, q: Tensor, k: Tensor | None, v: Tensor | None, out: Tensor, lse: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    results = new_gradients(q, k, v)
    q, k, v = unpack(q, k, v)
    if q.numel() == 0:
        for result in results:
            result.zero_()  # keys that no query looked at
        return results
    tensors = tuple(x.transpose(1, 2) for x in (dout.view(q.shape), q, k, v, *views(*results)))  # (N, H, T, Dh)
    n, h, tq, _ = tensors[0].shape
    pairs = max(1, TILE // (tq * k.shape[1]))  # (sample, head) pairs whose P fits
    heads = min(h, pairs)
    samples = min(n, pairs // heads)
    for i in range(0, n, samples):
        for j in range(0, h, heads):
            with without_autocast("cpu"):
                _backward_of_tile(scale, *(x[i : i + samples, j : j + heads] for x in tensors))
    return results


def _backward_of_tile(
    scale: float, dout: Tensor, q: Tensor, k: Tensor, v: Tensor, dq: Tensor, dk: Tensor, dv: Tensor
) -> None:
    """The formula of autograd.py for tensors (samples, heads, T, Dh), in float32; writes dq, dk and dv.

    PyTorch's own softmax backward is not used: its bits depend on the number of threads.
    """
    dout, q, k, v = (x.float() for x in (dout, q, k, v))
    p = torch.matmul(q, k.mT).mul_(scale).softmax(-1)  # (samples, heads, Tq, Tk)
    dp = torch.matmul(dout, v.mT)
    ds = dp.sub_((p * dp).sum(-1, keepdim=True)).mul_(p)
    dv.copy_(torch.matmul(p.mT, dout))
    dq.copy_(torch.matmul(ds, k).mul_(scale))
    dk.copy_(torch.matmul(ds.mT, q).mul_(scale))
