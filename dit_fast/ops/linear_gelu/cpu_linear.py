# SPDX-License-Identifier: Apache-2.0
"""Who multiplies on this CPU: "own", the native library's kernels; "onednn", oneDNN on packed weights; or PyTorch.

- AVX2: own. On two cores of an AMD EPYC in float32 (PyTorch 2.13) it is 1.07 to 1.19 times as fast as MKL at the sizes
  of DiT-S and DiT-B, 1.04 to 1.13 times in the gradient of x, oneDNN on packed weights MKL's equal; a GELU costs it
  0.3 ns an element beside PyTorch's 1.8; 2 to 16 rows take 0.7 of MKL's time. PyTorch multiplies bfloat16 without a
  vector instruction there, own as float32.
- AVX-512: oneDNN, where no gradient is wanted. On an AMD EPYC with AVX-512 BF16, float32 at 190-223 GFLOP/s beside
  MKL's 171-184, bfloat16 at 391-441 beside 351-416 on plain weights, and the GELU for nothing.
- Elsewhere nothing was measured, and PyTorch's choice stands.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .._core import native
from . import packed

CHOICE = {"avx2": "own", "avx512": "onednn"}
"""By instruction set; what is absent is PyTorch's."""

_BUILT = native.has_kernel("linear", "cpu")


def why_not(kernel: str, rows: Tensor | None = None, weight: Tensor | None = None) -> str | None:
    """Why "own" or "onednn" does not multiply here; None if it does. oneDNN needs to see (M, K) and (F, K)."""
    isa = _instruction_set()
    if CHOICE.get(isa) != kernel:
        return f"{kernel} is not known to be faster on a CPU with {isa}"
    if kernel == "own":
        return None if _BUILT else native.MISSING or "no kernel of linear in the native library"
    assert rows is not None and weight is not None
    return packed.why_not(rows, weight)


def own(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x (..., K), weight (F, K), bias (F,) -> (..., F); all dense, of one dtype among KERNEL_DTYPES."""
    return torch.ops.dit_fast_native.linear.default(x, weight, bias, False, False)[0]


def input_gradient(dy: Tensor, weight: Tensor) -> Tensor:
    """dy (M, F), weight (F, K) -> dx = dy weight (M, K); both dense, as for `own`."""
    return torch.ops.dit_fast_native.linear_input_gradient.default(dy, weight)


def hidden_gradient(dy: Tensor, weight: Tensor, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of y = gelu(u) weight^T: dy (M, F), weight (F, K), u (M, K) -> du, gelu(u) (M, K), dbias = sum of du (K,)."""
    return torch.ops.dit_fast_native.linear_hidden_gradient.default(dy, weight, u)


def weight_gradient(dy: Tensor, x: Tensor) -> Tensor:
    """dy (M, F), x (M, K) -> dweight = dy^T x (F, K), where the CPU's choice is "own".

    By PyTorch: a kernel of our own was not faster than MKL here. 16 bits are multiplied in float32, see the module.
    """
    dweight = x.new_empty((dy.shape[1], x.shape[1]), dtype=torch.float32)
    torch.mm(dy.float().t(), x.float(), out=dweight)  # `out`: autocast leaves it alone
    return dweight.to(x.dtype)


def onednn(rows: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool = False) -> Tensor:
    """rows (M, K) -> (M, F) with oneDNN, from a packed copy of the weight; with GELU as its epilogue if asked."""
    attributes: Sequence[object] = ("gelu", [], "tanh") if gelu else ("none", [], "")
    return packed.linear_pointwise()(rows, packed.pack(weight, len(rows)), bias, *attributes)


def _instruction_set() -> str:
    """The native library's; without it, what PyTorch uses, in the same words."""
    return native.instruction_set() or torch.backends.cpu.get_cpu_capability().lower()
