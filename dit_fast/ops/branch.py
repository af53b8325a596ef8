# SPDX-License-Identifier: Apache-2.0
"""A branch of a transformer block and the op that ends it, in one call: for inference on a CPU.

    x_new = x + gate * branch(h),   h_new = LN(x_new) * (1 + scale) + shift

The kernels are those of `linear`, `attention`, `linear_gelu` and `gated_residual_adaln`, and so are the bits. What is
saved is Python: when a kernel is done, the interpreter is no longer in the core's cache, and to call an op takes some
0.1 ms. That was 7% of a forward of DiT-S/2 at N = 2 on two AVX2 cores, 2% at N = 8.

N batch, T tokens, D width, F width of the MLP.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ._core import KERNEL_DTYPES, current_backend, native, why_not_direct
from ._core.backends import announce
from .attention.preference import order
from .linear_gelu import cpu_linear

_BUILT = native.has_kernel("attention_branch", "cpu")

Layer = tuple[Tensor, Tensor | None]
"""Weight and bias of a linear layer."""


def worth_asking(x: Tensor) -> bool:
    """Whether there may be a call for tokens like x: asked before anything else, and quick to say no."""
    return _BUILT and not torch.compiler.is_compiling() and x.is_cpu and not torch.is_grad_enabled()


def attention_branch(
    x: Tensor, h: Tensor, qkv: Layer, proj: Layer, num_heads: int, gate: Tensor, shift: Tensor, scale: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor] | None:  # fmt: skip
    """The branch proj(attention(qkv(h))).

    Args:
        x, h: (N, T, D).
        qkv: (3D, D) and (3D,).
        proj: (D, D) and (D,).
        num_heads: H, which divides D.
        gate, shift, scale: (N, D).
        eps: of the norm.

    Returns:
        x_new and h_new, (N, T, D) each; None where the ops have to be called one by one (see `why_not`).
    """
    d = h.shape[-1]
    sizes = (3 * d, d), (3 * d,), (d, d), (d,)
    if why_not(x, h, (*qkv, *proj), sizes, (gate, shift, scale), d // num_heads) is not None:
        return None
    rows = _dense(gate), _dense(shift), _dense(scale)
    return torch.ops.dit_fast_native.attention_branch.default(x, h, *qkv, *proj, num_heads, *rows, eps)


def mlp_branch(
    x: Tensor, h: Tensor, fc1: Layer, fc2: Layer, gate: Tensor, shift: Tensor, scale: Tensor, eps: float
) -> tuple[Tensor, Tensor] | None:
    """The branch fc2(gelu(fc1(h))), fc1 with (F, D) and (F,), fc2 with (D, F) and (D,); otherwise as the other."""
    d, f = h.shape[-1], len(fc1[0])
    sizes = (f, d), (f,), (d, f), (d,)
    if why_not(x, h, (*fc1, *fc2), sizes, (gate, shift, scale)) is not None:
        return None
    rows = _dense(gate), _dense(shift), _dense(scale)
    return torch.ops.dit_fast_native.mlp_branch.default(x, h, *fc1, *fc2, *rows, eps)


def why_not(
    x: Tensor,
    h: Tensor,
    layers: Sequence[Tensor | None],
    sizes: Sequence[tuple[int, ...]],
    rows: Sequence[Tensor],
    head_width: int | None = None,
) -> str | None:
    """Why the ops have to be called one by one, who cast, copy, refuse or leave to others; None if it is all the same.

    Args:
        x, h: what should be (N, T, D).
        layers, sizes: weights and biases, and the shapes they should have.
        rows: what should be (N, D).
        head_width: of the attention, if there is one.
    """
    if (reason := why_not_direct((x, h, *layers, *rows))) is not None:
        return reason
    if torch._C._is_any_autocast_enabled():
        return "autocast chooses a dtype for each op"
    shape, dtype = x.shape, x.dtype
    if len(shape) != 3 or not x.numel() or dtype not in KERNEL_DTYPES:
        return "x is not (N, T, D) in one of the kernels' dtypes"
    row = shape[0], shape[2]
    for tensor, size in ((h, shape), *zip(layers, sizes, strict=True), *((tensor, row) for tensor in rows)):
        if tensor is not None and (tensor.shape != size or tensor.dtype is not dtype or not tensor.is_cpu):
            return "a shape, dtype or device that does not fit x"
    for tensor in (x, h, *layers):
        if tensor is not None and not tensor.is_contiguous():
            return "a tensor that is not contiguous"
    if (reason := cpu_linear.why_not("own")) is not None:
        return reason
    ops = ["linear_gelu", "gated_residual_adaln"]  # linear follows linear_gelu
    if head_width is not None:
        ops.append("attention")
        if current_backend("attention") == "auto" and order(x.device, dtype, head_width, shape[1])[0] != "cpu":
            return "attention has a faster backend"
    for op in ops:
        if (backend := current_backend(op)) == "auto":
            announce(op, "cpu", "cpu", [])
        elif backend != "cpu":
            return f"backend {backend!r} was asked for"
    return None


def _dense(row: Tensor) -> Tensor:
    return row if row.stride(1) == 1 else row.contiguous()
