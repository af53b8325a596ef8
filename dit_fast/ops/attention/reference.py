# SPDX-License-Identifier: Apache-2.0
"""Softmax attention in plain PyTorch, with normalised and rotated queries and keys if asked for: the specification."""

import torch
from torch import Tensor

from .._core import without_autocast


def normalize(x: Tensor, norm: str, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """Each head's row of x (..., Dh): "rms" (arXiv 1910.07467) or "layer" (arXiv 1607.06450) normalisation."""
    if norm == "layer":
        x = x - x.mean(-1, keepdim=True)
    x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
    x = x if weight is None else x * weight.to(x.dtype)
    return x if bias is None else x + bias.to(x.dtype)


def rotate(x: Tensor, rope: Tensor) -> Tensor:
    """x (N, T, H, Dh); rope (2, T, Dh/2): cos and sin of the angle by which each pair (2i, 2i+1) turns (2104.09864)."""
    cos, sin = rope.to(x.dtype)[:, :, None]  # (T, 1, Dh/2) each
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, odd * cos + even * sin), -1).flatten(-2)


def prepare(
    x: Tensor, norm: str | None, weight: Tensor | None, bias: Tensor | None, eps: float, rope: Tensor | None
) -> Tensor:
    """Normalise, rotate, and round to storage once: what the logits are made of."""
    if norm is None and rope is None:
        return x
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    if norm is not None:
        wide = normalize(wide, norm, weight, bias, eps)
    if rope is not None:
        wide = rotate(wide, rope)
    return wide.to(x.dtype)


def attention(
    q: Tensor, k: Tensor | None = None, v: Tensor | None = None, *, scale: float | None = None,
    norm: str | None = None, q_weight: Tensor | None = None, k_weight: Tensor | None = None,
    q_bias: Tensor | None = None, k_bias: Tensor | None = None, eps: float = 1e-6, rope: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """The arithmetic of eager scaled_dot_product_attention ("math"): half precision inputs are widened to float32,
    logits and probabilities stay float32, and the result is rounded once, autocast or not."""
    if k is None or v is None:
        q, k, v = q.unbind(2)  # (N, T, 3, H, Dh) -> 3 x (N, T, H, Dh)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    wide = torch.promote_types(q.dtype, torch.float32)
    with without_autocast(q.device.type):
        q_hat = prepare(q, norm, q_weight, q_bias, eps, rope)
        k_hat = prepare(k, norm, k_weight, k_bias, eps, rope)
        logits = torch.einsum("nqhd,nkhd->nhqk", q_hat.to(wide), k_hat.to(wide)) * scale  # (N, H, Tq, Tk)
        out = torch.einsum("nhqk,nkhd->nqhd", logits.softmax(-1), v.to(wide))  # (N, Tq, H, Dh)
    return out.flatten(2).to(q.dtype)  # (N, Tq, H*Dh)
