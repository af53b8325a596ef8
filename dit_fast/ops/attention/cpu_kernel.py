# SPDX-License-Identifier: Apache-2.0
"""The `cpu` backend of attention: PyTorch's own kernels for the CPU, called on views.

Forward: the flash kernel behind scaled_dot_product_attention. It takes (N, H, T, Dh) with any strides, writes out as
(N, T, H, Dh) in memory and sums in float32. It divides by the number of tokens, so an empty input does not reach it.

Backward: products of whole rows of P, for a few heads of one sample at a time, in float32. PyTorch's flash backward
is not used: without bfloat16 instructions it is 7 times slower than this, and its dq has twice the error of eager
PyTorch's in float32 and four times in bfloat16 at two keys (it takes dout . out for the sum of P * dP, after out was
rounded). P is made from q and k again, so lse is not read.
"""

import torch
from torch import Tensor

from .._core import without_autocast
from .heads import new_gradients, unpack, views

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default

TILE = 1 << 22
"""Elements of P held at a time: 64 heads of 256 x 256; 16 MB in each of three buffers."""


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
    tensors = (dout.view(q.shape), q, k, v, *views(*results))
    h, tq, tk = q.shape[2], q.shape[1], k.shape[1]
    group = min(h, max(1, TILE // (tq * tk)))
    buffers = q.new_empty((3, group, tq, tk), dtype=torch.float32)
    for sample in zip(*tensors, strict=True):
        for first in range(0, h, group):
            heads = [x[:, first : first + group].transpose(0, 1) for x in sample]  # (heads, T, Dh)
            with without_autocast("cpu"):
                _backward_of_heads(heads, scale, buffers[:, : heads[0].shape[0]])
    return results


def _backward_of_heads(tensors: list[Tensor], scale: float, buffers: Tensor) -> None:
    """The formula of autograd.py: reads dout, q, k, v, writes dq, dk, dv, all (heads, T, Dh).

    `buffers` (3, heads, Tq, Tk) float32 take S (then P * dP), P and dP (then dS). PyTorch's own softmax backward
    is not used: its bits depend on the number of threads.
    """
    dout, q, k, v = (x.float() for x in tensors[:4])
    dq, dk, dv = tensors[4:]
    s, p, dp = buffers
    torch.baddbmm(s, q, k.mT, beta=0, alpha=scale, out=s)
    torch.softmax(s, -1, out=p)
    torch.bmm(dout, v.mT, out=dp)
    ds = dp.sub_(torch.mul(p, dp, out=s).sum(-1, keepdim=True)).mul_(p)
    dv.copy_(torch.bmm(p.mT, dout))
    dq.copy_(torch.bmm(ds, k).mul_(scale))
    dk.copy_(torch.bmm(ds.mT, q).mul_(scale))
