# SPDX-License-Identifier: Apache-2.0
"""Softmax attention in plain PyTorch: the specification."""

import torch
from torch import Tensor

from .._core import without_autocast


def attention(q: Tensor, k: Tensor | None = None, v: Tensor | None = None, *, scale: float | None = None) -> Tensor:
    """The arithmetic of eager scaled_dot_product_attention ("math"): half precision inputs are widened to float32,
    logits and probabilities stay float32, and the result is rounded once, autocast or not."""
    if k is None or v is None:
        q, k, v = q.unbind(2)  # (N, T, 3, H, Dh) -> 3 x (N, T, H, Dh)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    wide = torch.promote_types(q.dtype, torch.float32)
    with without_autocast(q.device.type):
        logits = torch.einsum("nqhd,nkhd->nhqk", q.to(wide), k.to(wide)) * scale  # (N, H, Tq, Tk)
        out = torch.einsum("nhqk,nkhd->nqhd", logits.softmax(-1), v.to(wide))  # (N, Tq, H, Dh)
    return out.flatten(2).to(q.dtype)  # (N, Tq, H*Dh)
