# SPDX-License-Identifier: Apache-2.0
"""What enters a DiT: patches, positions, timesteps, labels.

N batch, C channels, H W image, p patch, h w grid of patches, T = h*w tokens, D width.
"""

import math

import torch
from torch import Tensor, nn

from dit_fast import ops

from .layers import Linear


class PatchEmbed(nn.Module):
    """An image as tokens: each p x p patch through one Linear, plus its position (DiT, section 3.2, "Patchify").

    The Linear is kept as the weight of a convolution, `proj`, as in ViT.
    """

    def __init__(self, patch_size: int, in_channels: int, hidden_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, hidden_size, patch_size, stride=patch_size)

    def forward(self, x: Tensor, pos: Tensor) -> Tensor:
        """x (N, C, H, W), pos (T, D) -> (N, T, D)."""
        return ops.patch_embed(x, self.proj.weight, self.proj.bias, pos)


def sincos_1d(positions: Tensor, dim: int) -> Tensor:
    """(T,) positions -> (T, dim): [sin | cos] of the position over a geometric range of wavelengths."""
    omega = torch.arange(dim // 2, dtype=torch.float64, device=positions.device) / (dim // 2)
    angle = positions[:, None] / 10000.0 ** omega[None, :]
    return torch.cat([angle.sin(), angle.cos()], dim=1)


def sincos_2d(h: int, w: int, dim: int, device: torch.device | None = None) -> Tensor:
    """Positions of an h x w grid, row by row: (h*w, dim) in float64.

    The first half of the channels encodes the column, the second half the row (DiT uses ViT's frequency-based
    embedding, section 3.2; the halves follow its released weights).
    """
    row = torch.arange(h, dtype=torch.float64, device=device).repeat_interleave(w)
    column = torch.arange(w, dtype=torch.float64, device=device).repeat(h)
    return torch.cat([sincos_1d(column, dim // 2), sincos_1d(row, dim // 2)], dim=1)


@torch.library.custom_op("dit_fast::positions", mutates_args=())
def _positions(pos: Tensor, own_h: int, own_w: int, h: int, w: int) -> Tensor:
    if (h, w) == (own_h, own_w):
        return pos.clone()
    return sincos_2d(h, w, pos.shape[-1], device=pos.device).to(pos.dtype)


@_positions.register_fake
def _(pos: Tensor, own_h: int, own_w: int, h: int, w: int) -> Tensor:
    return pos.new_empty(h * w, pos.shape[-1])


def grid_positions(pos: Tensor, own: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """(T, D) positions of an h x w grid in pos's dtype: `pos` itself where that is its own grid, else computed.

    While a graph is traced the choice is an operator's, made as it runs: one graph then serves every size. That
    operator has no gradient.
    """
    if torch.compiler.is_compiling():
        return _positions(pos, *own, *grid)
    return pos if grid == own else sincos_2d(*grid, pos.shape[-1], device=pos.device).to(pos.dtype)


def timestep_features(t: Tensor, dim: int = 256, max_period: float = 10000.0, downscale: int = 0) -> Tensor:
    """(N,) timesteps, fractional ones too -> (N, dim) float32, [cos | sin] (DDPM's sinusoidal embedding).

    The frequencies are max_period ** (-i / (dim / 2 - downscale)).
    """
    half = dim // 2
    exponent = torch.arange(half, dtype=torch.float32, device=t.device) * -math.log(max_period)
    omega = torch.exp(exponent / (half - downscale))
    angle = t[:, None].float() * omega[None, :]
    features = torch.cat([angle.cos(), angle.sin()], dim=1)
    return nn.functional.pad(features, (0, dim - 2 * half))


class TimestepEmbedder(nn.Module):
    """(N,) timesteps -> (N, D): 256 sinusoidal features, Linear, SiLU, Linear (DiT, section 3.2).

    `downscale` is `timestep_features`'s; diffusers' DiT has 1.
    """

    def __init__(self, hidden_size: int, frequencies: int = 256, downscale: int = 0) -> None:
        super().__init__()
        self.frequencies = frequencies
        self.downscale = downscale
        linears = Linear(frequencies, hidden_size), Linear(hidden_size, hidden_size)
        self.mlp = nn.Sequential(linears[0], nn.SiLU(), linears[1])

    def forward(self, t: Tensor) -> Tensor:
        features = timestep_features(t, self.frequencies, downscale=self.downscale)  # float32
        return self.mlp(features.to(next(self.mlp.parameters()).dtype))


class LabelEmbedder(nn.Module):
    """(N,) class labels -> (N, D). While training, labels are dropped at random for classifier-free guidance.

    A dropped label becomes `num_classes`, the null label, which has a row of its own if `dropout_prob` > 0.
    """

    def __init__(self, num_classes: int, hidden_size: int, dropout_prob: float) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.dropout_prob = dropout_prob
        self.embedding_table = nn.Embedding(num_classes + (dropout_prob > 0), hidden_size)

    def forward(self, labels: Tensor, force_drop_ids: Tensor | None = None) -> Tensor:
        """`force_drop_ids` (N,), where given, says which labels to drop (1) and keep (0), in place of chance."""
        if force_drop_ids is not None:
            labels = torch.where(force_drop_ids == 1, self.num_classes, labels)
        elif self.training and self.dropout_prob > 0:
            dropped = torch.rand(labels.shape, device=labels.device) < self.dropout_prob
            labels = torch.where(dropped, self.num_classes, labels)
        return self.embedding_table(labels)
