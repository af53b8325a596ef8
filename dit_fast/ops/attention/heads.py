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


def units(*tensors: Tensor) -> tuple[int, list[int]]:
    """A unit in elements, and in it the (sample, token, head) strides of tensors (N, T, H, Dh), for Triton kernels.

    Triton asks of an argument only whether it is a multiple of 16. A head stride of 72 is not, and would leave it to
    load one element at a time; times a unit of 8 that the kernel knows, it keeps loads of 8 (of 4 in float32).
    Views that stride otherwise have a unit of 1 and the slow loads.
    """
    strides = [stride for tensor in tensors for stride in tensor.stride()[:3]]
    unit = 1 if any(stride % 8 for stride in strides) else 8
    return unit, [stride // unit for stride in strides]
