# SPDX-License-Identifier: Apache-2.0
"""The branches of a transformer block. N batch, T tokens, S context tokens, D width, H heads, Dh = D / H."""

from typing import Literal, TypeGuard

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from dit_fast import ops


class Linear(nn.Linear):
    """torch.nn.Linear through `ops.linear`, which has faster kernels on a CPU."""

    def forward(self, input: Tensor) -> Tensor:
        return ops.linear(input, self.weight, self.bias)


def untouched(module: nn.Module) -> bool:
    """Whether to call the module is to call its class's `forward`."""
    return not (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or module._compiled_call_impl is not None
        or "forward" in module.__dict__
        or _has_any_global_hook()
    )


def is_linear(module: nn.Module | None) -> TypeGuard[Linear]:
    """Whether to call the module is to call `ops.linear`: nobody has replaced, wrapped or hooked it."""
    return type(module) is Linear and untouched(module)


class Attention(nn.Module):
    """Multi-head self-attention.

    With `qk_norm`, "rms" or "layer", the queries and keys of each head are normalised first, by `q_norm` and `k_norm`
    (timm's names).
    """

    q_norm: nn.RMSNorm | nn.LayerNorm | None
    k_norm: nn.RMSNorm | nn.LayerNorm | None

    def __init__(self, dim: int, num_heads: int, qk_norm: Literal["rms", "layer"] | None = None) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qk_norm = qk_norm
        self.qkv = Linear(dim, 3 * dim)
        self.q_norm, self.k_norm = (_norm(qk_norm, dim // num_heads) for _ in "qk")
        self.proj = Linear(dim, dim)

    def forward(self, x: Tensor, rope: Tensor | None = None) -> Tensor:
        """x (N, T, D); rope (2, T, Dh/2), see `rope_2d` -> (N, T, D)."""
        n, t, d = x.shape
        qkv = self.qkv(x).view(n, t, 3, self.num_heads, d // self.num_heads)  # (N, T, 3, H, Dh)
        q, k = self.q_norm, self.k_norm
        if q is None or k is None:
            return self.proj(ops.attention(qkv, rope=rope))  # (N, T, D)
        q_bias, k_bias = getattr(q, "bias", None), getattr(k, "bias", None)
        out = ops.attention(
            qkv, norm=self.qk_norm, q_weight=q.weight, k_weight=k.weight, q_bias=q_bias, k_bias=k_bias, eps=EPS,
            rope=rope,
        )  # fmt: skip
        return self.proj(out)


EPS = 1e-6


def _norm(kind: str | None, dh: int) -> nn.RMSNorm | nn.LayerNorm | None:
    if kind not in (None, "rms", "layer"):
        raise ValueError(f"Attention: `qk_norm` must be 'rms', 'layer' or None, got {kind!r}")
    if kind is None:
        return None
    return nn.RMSNorm(dh, eps=EPS) if kind == "rms" else nn.LayerNorm(dh, eps=EPS)


class CrossAttention(nn.Module):
    """Multi-head attention from tokens (N, T, D) to a context (N, S, D)."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q = Linear(dim, dim)
        self.kv = Linear(dim, 2 * dim)
        self.proj = Linear(dim, dim)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        n, t, d = x.shape
        heads = self.num_heads, d // self.num_heads
        q = self.q(x).view(n, t, *heads)  # (N, T, H, Dh)
        k, v = self.kv(context).view(n, -1, 2, *heads).unbind(2)  # (N, S, H, Dh) each
        return self.proj(ops.attention(q, k, v))  # (N, T, D)


class Mlp(nn.Module):
    """Linear, GELU (tanh form), Linear."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = Linear(dim, hidden)
        self.fc2 = Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        fc1, fc2 = self.fc1, self.fc2
        if not is_linear(fc1):
            return fc2(F.gelu(fc1(x), approximate="tanh"))
        if not is_linear(fc2):
            return fc2(ops.linear_gelu(x, fc1.weight, fc1.bias))
        return ops.mlp(x, fc1.weight, fc1.bias, fc2.weight, fc2.bias)
