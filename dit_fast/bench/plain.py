# SPDX-License-Identifier: Apache-2.0
"""A DiT as a textbook writes it, from the paper alone (arXiv 2212.09748, section 3.2): the model that this package's is
timed beside, in eager PyTorch and through compilers. It has the same constructor's sizes and the same state_dict.

N batch, C channels, H W image, p patch, h w grid of patches, T = h*w tokens, D width.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dit_fast.models import DiT

FREQUENCIES = 256


def timestep_features(t: Tensor) -> Tensor:
    """(N,) -> (N, 256) float32."""
    half = FREQUENCIES // 2
    omega = torch.exp(-math.log(10000.0) * torch.arange(half, dtype=torch.float32, device=t.device) / half)
    angle = t[:, None].float() * omega[None]
    return torch.cat([angle.cos(), angle.sin()], dim=1)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return x * (1 + scale[:, None]) + shift[:, None]


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        n, t, d = x.shape
        q, k, v = self.qkv(x).view(n, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)  # (N, heads, T, Dh)
        out = F.scaled_dot_product_attention(q, k, v)
        return self.proj(out.transpose(1, 2).reshape(n, t, d))


class Mlp(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class Block(nn.Module):
    def __init__(self, dim: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)
        self.attn = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale, gate, shift2, scale2, gate2 = self.adaLN_modulation(c).chunk(6, dim=1)
        x = x + gate[:, None] * self.attn(modulate(self.norm1(x), shift, scale))
        return x + gate2[:, None] * self.mlp(modulate(self.norm2(x), shift2, scale2))


class TimestepEmbedder(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(FREQUENCIES, dim), nn.SiLU(), nn.Linear(dim, dim))

    def forward(self, features: Tensor) -> Tensor:
        return self.mlp(features)


class Labels(nn.Module):
    def __init__(self, rows: int, dim: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(rows, dim)

    def forward(self, y: Tensor) -> Tensor:
        return self.embedding_table(y)


class Patches(nn.Module):
    def __init__(self, channels: int, dim: int, p: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, dim, p, stride=p)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class Final(nn.Module):
    def __init__(self, dim: int, outputs: int) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)
        self.linear = nn.Linear(dim, outputs)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 2 * dim))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(c).chunk(2, dim=1)
        return self.linear(modulate(self.norm_final(x), shift, scale))


class PlainDiT(nn.Module):
    """A DiT with adaLN-Zero and labels. `core` takes the timestep's features, for runtimes that would round them."""

    def __init__(
        self, *, input_size: Any, patch_size: int, in_channels: int, hidden_size: int, depth: int, num_heads: int,
        mlp_ratio: float, class_dropout_prob: float, num_classes: int, learn_sigma: bool, conditioning: str,
    ) -> None:  # fmt: skip
        super().__init__()
        if conditioning != "adaln_zero" or not num_classes:
            raise ValueError(f"PlainDiT: `conditioning` must be adaln_zero, with labels, got {conditioning!r}")
        height, width = input_size
        self.p, self.grid = patch_size, (height // patch_size, width // patch_size)
        self.num_classes, self.drop = num_classes, class_dropout_prob
        self.out_channels = in_channels * (2 if learn_sigma else 1)
        self.x_embedder = Patches(in_channels, hidden_size, patch_size)
        self.t_embedder = TimestepEmbedder(hidden_size)
        self.y_embedder = Labels(num_classes + (class_dropout_prob > 0), hidden_size)
        self.pos_embed = nn.Parameter(torch.zeros(1, self.grid[0] * self.grid[1], hidden_size), requires_grad=False)
        self.blocks = nn.ModuleList(Block(hidden_size, num_heads, mlp_ratio) for _ in range(depth))
        self.final_layer = Final(hidden_size, patch_size * patch_size * self.out_channels)

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """x (N, C, H, W), t (N,), y (N,) -> (N, out_channels, H, W)."""
        if self.training and self.drop > 0:
            y = torch.where(torch.rand(y.shape, device=y.device) < self.drop, self.num_classes, y)
        return self.core(x, timestep_features(t).to(self.pos_embed.dtype), y)

    def core(self, x: Tensor, features: Tensor, y: Tensor) -> Tensor:
        x = self.x_embedder(x) + self.pos_embed  # (N, T, D)
        c = self.t_embedder(features) + self.y_embedder(y)  # (N, D)
        for block in self.blocks:
            x = block(x, c)
        x = self.final_layer(x, c)  # (N, T, p*p*C)
        (h, w), p = self.grid, self.p
        x = x.view(-1, h, w, p, p, self.out_channels)
        return x.permute(0, 5, 1, 3, 2, 4).reshape(-1, self.out_channels, h * p, w * p)


def plain_copy(model: DiT) -> PlainDiT:
    """The plain model with `model`'s weights, dtype, device and mode. Its weights are a copy."""
    config: dict[str, Any] = model.config
    with torch.device("meta"):
        plain = PlainDiT(**config)
    plain.load_state_dict({name: value.clone() for name, value in model.state_dict().items()}, assign=True)
    return plain.train(model.training)
