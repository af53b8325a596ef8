# SPDX-License-Identifier: Apache-2.0
"""The branches of a transformer block. N batch, T tokens, S context tokens, D width, H heads, Dh = D / H."""

from torch import Tensor, nn

from dit_fast import ops


class Attention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        n, t, d = x.shape
        qkv = self.qkv(x).view(n, t, 3, self.num_heads, d // self.num_heads)  # (N, T, 3, H, Dh)
        return self.proj(ops.attention(qkv))  # (N, T, D)


class CrossAttention(nn.Module):
    """Multi-head attention from tokens (N, T, D) to a context (N, S, D)."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)

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
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(ops.linear_gelu(x, self.fc1.weight, self.fc1.bias))
