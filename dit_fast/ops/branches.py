# SPDX-License-Identifier: Apache-2.0
"""Branches of transformer blocks, each with the op that ends it, in one call: for inference on a CPU.

For every branch in turn
    x = x + gate * branch(h),   h = LN(x) * (1 + scale) + shift
where branch(h) is proj(attention(qkv(h))) or fc2(gelu(fc1(h))).

The kernels are those of `linear`, `attention`, `linear_gelu` and `gated_residual_adaln`, and so are the bits. What is
saved is Python: when a kernel is done, the interpreter is no longer in the core's cache, and to call an op takes some
0.1 ms.

N batch, T tokens, D width, F width of the MLP.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ._core import KERNEL_DTYPES, current_backend, dense, native, why_not_direct
from ._core.backends import announce
from .attention.preference import order
from .linear_gelu import cpu_linear

_BUILT = native.has_kernel("branches", "cpu")


class Branch(NamedTuple):
    """A branch and its end.

    Attributes:
        num_heads: of the attention between its two linear layers; 0 for a GELU.
        layers: their weights and biases: (3D, D), (3D,), (D, D), (D,) around an attention, (F, D), (F,), (D, F), (D,)
            around a GELU.
        gate, shift, scale: (N, D).
        eps: of the norm.
    """

    num_heads: int
    layers: tuple[Tensor, Tensor, Tensor, Tensor]
    gate: Tensor
    shift: Tensor
    scale: Tensor
    eps: float


def worth_asking(x: Tensor) -> bool:
    """Whether there may be a call for tokens like x: asked before anything else, and quick to say no."""
    if not _BUILT or torch.compiler.is_compiling() or not x.is_cpu or torch.is_grad_enabled():
        return False
    return cpu_linear.why_not("own") is None


def branches(x: Tensor, h: Tensor, given: Sequence[Branch]) -> tuple[Tensor, Tensor] | None:
    """x and h, (N, T, D) each, after all the branches given; None where the ops have to be called (see `why_not`)."""
    if why_not(x, h, given) is not None:
        return None
    for op in _ops(given):
        if current_backend(op) == "auto":
            announce(op, "cpu", "cpu", [])
    layers = [tensor for branch in given for tensor in branch.layers]
    rows = [dense(row, strided=True) for branch in given for row in (branch.gate, branch.shift, branch.scale)]
    heads, eps = [branch.num_heads for branch in given], [branch.eps for branch in given]
    return torch.ops.dit_fast_native.branches.default(x, h, layers, rows, heads, eps)


def why_not(x: Tensor, h: Tensor, given: Sequence[Branch]) -> str | None:
    """Why the ops have to be called one by one, who cast, copy, refuse or leave to others; None if nobody would."""
    if not worth_asking(x):
        return "gradients are enabled, a graph is traced, or the library's linears do not serve"
    if torch._C._is_any_autocast_enabled():
        return "autocast chooses a dtype for each op"
    if x.dim() != 3 or not x.numel() or x.dtype not in KERNEL_DTYPES:
        return "x is not (N, T, D) in one of the kernels' dtypes"
    for op in _ops(given):
        if (backend := current_backend(op)) not in ("auto", "cpu"):
            return f"backend {backend!r} was asked for"
        if backend == "auto" and op == "attention" and not _attends(x, given):
            return "attention has a faster backend"
    reason = why_not_direct([x, h, *(tensor for branch in given for tensor in (*branch.layers, *branch[2:5]))])
    if reason is not None:
        return reason
    if not (x.is_contiguous() and _fits(h, x, x.shape) and h.is_contiguous()):
        return "h does not fit x, or one of them is not contiguous"
    for branch in given:
        if (reason := _why_not_branch(x, branch)) is not None:
            return reason
    return None


def _ops(given: Sequence[Branch]) -> list[str]:
    """The ops whose backend counts; linear follows linear_gelu."""
    attention = ["attention"] if any(branch.num_heads for branch in given) else []
    return ["linear_gelu", "gated_residual_adaln", *attention]


def _attends(x: Tensor, given: Sequence[Branch]) -> bool:
    """Whether `auto` takes the CPU's kernel for every attention."""
    widths = {x.shape[2] // branch.num_heads for branch in given if branch.num_heads}
    return all(order(x.device, x.dtype, width, x.shape[1])[0] == "cpu" for width in widths)


def _why_not_branch(x: Tensor, branch: Branch) -> str | None:
    n, _, d = x.shape
    f = 3 * d if branch.num_heads else len(branch.layers[0])
    sizes = (f, d), (f,), (d, d if branch.num_heads else f), (d,)
    for tensor, size in zip(branch.layers, sizes, strict=True):
        if not (_fits(tensor, x, size) and tensor.is_contiguous()):
            return "a weight or bias that does not fit x, or is not contiguous"
    for tensor in (branch.gate, branch.shift, branch.scale):
        if not _fits(tensor, x, (n, d)):
            return "a gate, shift or scale that does not fit x"
    return None


def _fits(tensor: Tensor, x: Tensor, size: tuple[int, ...]) -> bool:
    return tensor.shape == size and tensor.dtype is x.dtype and tensor.is_cpu
