# SPDX-License-Identifier: Apache-2.0
"""What an op is timed beside: its reference in eager PyTorch and through torch.compile, and libraries' kernels.

Libraries that a whole op can be handed to are backends of it (`Op.libraries`: PyTorch's attentions, flash-attn). Those
here compute only a part of one, and eager PyTorch the rest.
"""

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

COMPILED: dict[str, dict[str, Any]] = {"compile": {}, "compile-max-autotune": {"mode": "max-autotune-no-cudagraphs"}}
"""torch.compile of the reference, by name: its arguments. (A captured graph would reuse the outputs.)"""


@dataclass(frozen=True)
class OpPeer:
    """A library's way to one op. `differentiable` where it has a backward."""

    op: str
    package: str
    function: Callable[..., Any]
    differentiable: bool = True

    def why_not(self, device: str) -> str | None:
        if importlib.util.find_spec(self.package) is None:
            return f"{self.package} is not installed"
        return None if device == "cuda" else f"{self.package} needs a GPU"


def liger_adaln(x: Tensor, shift: Tensor, scale: Tensor, eps: float = 1e-6) -> Tensor:
    """Liger-Kernel's layer norm, then the modulation in eager PyTorch."""
    norm = importlib.import_module("liger_kernel.ops.layer_norm").LigerLayerNormFunction.apply
    one, zero = x.new_ones(x.shape[-1]), x.new_zeros(x.shape[-1])
    return norm(x, one, zero, eps) * (1 + scale[:, None]) + shift[:, None]


def quack_adaln(x: Tensor, shift: Tensor, scale: Tensor, eps: float = 1e-6) -> Tensor:
    """QuACK's layer norm (forward only), then the modulation in eager PyTorch."""
    one = torch.ones(x.shape[-1], device=x.device)
    normed = importlib.import_module("quack.rmsnorm").layernorm_fwd(x.flatten(0, 1), one, eps=eps)
    return normed.view_as(x) * (1 + scale[:, None]) + shift[:, None]


def xformers_attention(q: Tensor, k: Tensor | None = None, v: Tensor | None = None) -> Tensor:
    """xFormers' memory-efficient attention, its choice of a kernel."""
    if k is None or v is None:
        q, k, v = q.unbind(2)
    return importlib.import_module("xformers.ops").memory_efficient_attention(q, k, v).flatten(2)


LIBRARIES = {
    "liger": OpPeer("adaln", "liger_kernel", liger_adaln),
    "quack": OpPeer("adaln", "quack", quack_adaln, differentiable=False),
    "xformers": OpPeer("attention", "xformers", xformers_attention),
}

PEERS = ("eager", *COMPILED, *LIBRARIES)
