# SPDX-License-Identifier: Apache-2.0
"""Packed (N, T, 3, H, Dh) and separate (N, T, H, Dh) heads behind one face, without copies."""

from torch import Tensor


def unpack(q: Tensor, k: Tensor | None, v: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """q (N, Tq, H, Dh), k and v (N, Tk, H, Dh): themselves, or views of one packed qkv tensor."""
    if k is None or v is None:
        q, k, v = q.unbind(2)
    return q, k, v


def new_gradients(q: Tensor, k: Tensor | None, v: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Contiguous room for the gradients: dq, dk, dv, or dqkv and two tensors of 0 elements."""
    if k is None or v is None:
        return q.new_empty(q.shape), q.new_empty(0), q.new_empty(0)
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def views(dq: Tensor, dk: Tensor, dv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The three (N, T, H, Dh) tensors to write, of what `new_gradients` gave."""
    if dq.dim() == 5:
        dq, dk, dv = dq.unbind(2)
    return dq, dk, dv
