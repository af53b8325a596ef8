# SPDX-License-Identifier: Apache-2.0
"""Attention of other libraries as backends: to pick one, to compare with it, and for `auto` where ours has not shown
to be faster. q (N, Tq, H, Dh); k, v (N, Tk, H, Dh); any strides but a last one of 1 -> (N, Tq, H, Dh)."""

import importlib
import importlib.util
import logging
from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

log = logging.getLogger("dit_fast")

_reported: set[tuple[str, torch.dtype, int]] = set()


def sdpa_choice(q: Tensor, k: Tensor, v: Tensor, scale: float) -> SDPBackend:
    """The kernel that PyTorch's scaled_dot_product_attention picks for these heads."""
    heads = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    return SDPBackend(torch._fused_sdp_choice(*heads, scale=scale))


def sdpa(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """PyTorch's own, whose choice of a kernel is logged once for each kind of heads."""
    if torch.compiler.is_compiling():
        return _sdpa(q, k, v, scale)
    if q.numel() == 0:  # its flash kernel for the CPU divides by the number of tokens
        return _pinned(SDPBackend.MATH, q, k, v, scale)
    kind = q.device.type, q.dtype, q.shape[-1]
    if kind not in _reported:
        _reported.add(kind)
        choice = sdpa_choice(q, k, v, scale).name
        log.info("attention on %s, %s, heads of %d: backend sdpa is PyTorch's %s", *kind, choice)
    return _sdpa(q, k, v, scale)


def _sdpa(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    heads = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    return F.scaled_dot_product_attention(*heads, scale=scale).transpose(1, 2)


def _pinned(kernel: SDPBackend, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    with sdpa_kernel(kernel):
        return _sdpa(q, k, v, scale)


def _gpu_only(tensors: Sequence[Tensor]) -> str | None:
    return None if tensors[0].device.type == "cuda" else f"tensors are on {tensors[0].device.type}"


def _half_on_gpu(tensors: Sequence[Tensor]) -> str | None:
    if tensors[0].device.type == "cuda" and tensors[0].dtype not in (torch.bfloat16, torch.float16):
        return f"it takes bfloat16 and float16, got {tensors[0].dtype}"
    return _gpu_only(tensors)


def flash_attn(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """The flash-attn package: version 3 (`flash_attn_interface`) where it is installed, else 2."""
    module = importlib.import_module("flash_attn_interface" if _installed("flash_attn_interface") else "flash_attn")
    out = module.flash_attn_func(q, k, v, softmax_scale=scale, deterministic=True)
    return out[0] if isinstance(out, tuple) else out  # version 3 has also returned the log-sum-exp


def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def flash_attn_why_not(tensors: Sequence[Tensor]) -> str | None:
    q = tensors[0]
    if not (_installed("flash_attn_interface") or _installed("flash_attn")):
        return "the flash-attn package is not installed"
    if q.shape[-1] % 8 or q.shape[-1] > 256:
        return f"flash-attn takes head dims that are multiples of 8 up to 256, got {q.shape[-1]}"
    return _half_on_gpu(tensors)


Library = Callable[[Tensor, Tensor, Tensor, float], Tensor]

LIBRARIES: dict[str, tuple[Library, Callable[[Sequence[Tensor]], str | None]]] = {
    "sdpa": (sdpa, lambda tensors: None),
    "sdpa_flash": (partial(_pinned, SDPBackend.FLASH_ATTENTION), _half_on_gpu),
    "sdpa_cudnn": (partial(_pinned, SDPBackend.CUDNN_ATTENTION), _half_on_gpu),
    "sdpa_efficient": (partial(_pinned, SDPBackend.EFFICIENT_ATTENTION), _gpu_only),
    "flash_attn": (flash_attn, flash_attn_why_not),
}
"""`sdpa` leaves the choice to PyTorch; the three after it pin one of its kernels and fail where that cannot run."""
