# SPDX-License-Identifier: Apache-2.0
"""The paper's four DiT blocks (arXiv 2212.09748, section 3.2, figure 3), as one.

Every branch of every design computes x + gate * branch(LN(x) * (1 + scale) + shift); the designs differ in where
shift, scale and gate come from. So a block is its list of branches, and a model is one long list of them: the end of
each branch and the norm before the next are a single fused op, `gated_residual_adaln`, across block borders too.

| design | shift, scale | gate | branches |
|---|---|---|---|
| adaLN-Zero | regressed from c, zero at first | regressed from c, zero at first | attn, mlp |
| adaLN | regressed from c | 1 | attn, mlp |
| in-context | learned (the norm's own affine parameters) | 1 | attn, mlp |
| cross-attention | learned (the norm's own affine parameters) | 1 | attn, cross_attn, mlp |

N batch, T tokens, S context tokens, D width.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

from torch import Tensor, nn

from dit_fast import ops
from dit_fast.ops.branches import worth_asking

from .in_one_call import Step, in_one_call
from .layers import Attention, CrossAttention, Linear, Mlp, untouched


class Modulation(NamedTuple):
    """Of one branch, each (N, D); rows may be strided or expanded views. `eps` is the branch's norm's."""

    shift: Tensor
    scale: Tensor
    gate: Tensor
    eps: float = 1e-6


class Affine(nn.Module):
    """A layer norm's learned weight and bias, as the shift and scale of a modulation."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        norm = nn.LayerNorm(dim)
        self.weight, self.bias = norm.weight, norm.bias

    def forward(self, c: Tensor) -> Modulation:
        one = self.weight.new_ones(1)
        return Modulation(self.bias.expand_as(c), (self.weight - 1).expand_as(c), one.expand_as(c))


class Block(nn.Module):
    """What the designs share. `modulation(c)` gives one Modulation a branch."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float = 4.0) -> None:
        super().__init__()
        self.attn = Attention(dim, num_heads)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def modulation(self, c: Tensor) -> list[Modulation]:
        """c (N, D), the sum of the timestep's and the label's embedding."""
        raise NotImplementedError

    def branches(self, context: Tensor | None) -> list[Callable[[Tensor], Tensor]]:
        return [self.attn, self.mlp]

    def forward(
        self,
        x: Tensor,
        h: Tensor,
        modulation: list[Modulation],
        after: Modulation | None = None,
        context: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """One block, between two norms.

        Args:
            x: (N, T, D) residual stream.
            h: (N, T, D) x, normalised and modulated for this block's first branch.
            modulation: one for each branch of this block.
            after: shift and scale of the norm that follows this block; None where nothing follows.
            context: (N, S, D) tokens to attend to, in the cross-attention design.

        Returns:
            x after the block, and that x normalised and modulated with `after` (None where nothing follows).
        """
        following = [*modulation[1:], after]
        for branch, own, next_ in zip(self.branches(context), modulation, following, strict=True):
            if next_ is not None and (done := in_one_call(x, h, [(branch, own, next_)])) is not None:
                x, h = done
                continue
            y = branch(h)  # (N, T, D)
            if next_ is None:
                return ops.gated_residual(x, y, own.gate), None
            x, h = ops.gated_residual_adaln(x, y, own.gate, next_.shift, next_.scale, next_.eps)
        return x, h


def blocks_in_one_call(
    blocks: Iterable[nn.Module], x: Tensor, h: Tensor, modulations: list[list[Modulation]], last: Modulation
) -> Tensor | None:
    """h after all the blocks, whose last norm has shift and scale from `last`; None where they are to be called."""
    if not modulations or not worth_asking(x):
        return None
    steps: list[Step] = []
    afters = [*(modulation[0] for modulation in modulations[1:]), last]
    for block, modulation, after in zip(blocks, modulations, afters, strict=True):
        if not isinstance(block, Block) or not untouched(block):
            return None
        if type(block).forward is not Block.forward or type(block).branches is not Block.branches:
            return None
        attn, mlp = block._modules["attn"], block._modules["mlp"]
        steps += (attn, modulation[0], modulation[1]), (mlp, modulation[1], after)
    done = in_one_call(x, h, steps)
    return None if done is None else done[1]


class AdaLNZeroBlock(Block):
    """Shift, scale and gate of both branches regressed from c; the block starts as the identity.

    `norm2_eps` is the second norm's eps; diffusers' DiT has 1e-5.
    """

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float = 4.0, norm2_eps: float = 1e-6) -> None:
        super().__init__(dim, num_heads, mlp_ratio)
        self.norm2_eps = norm2_eps
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), Linear(dim, 6 * dim))

    def modulation(self, c: Tensor) -> list[Modulation]:
        return self.split(self.adaLN_modulation(c))

    def split(self, rows: Tensor) -> list[Modulation]:
        """rows (N, 6D), what `adaLN_modulation` gives; the modulations are views of it."""
        m = rows.chunk(6, dim=1)
        return [Modulation(m[0], m[1], m[2]), Modulation(m[3], m[4], m[5], self.norm2_eps)]


class AdaLNBlock(Block):
    """Shift and scale of both branches regressed from c."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float = 4.0) -> None:
        super().__init__(dim, num_heads, mlp_ratio)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), Linear(dim, 4 * dim))

    def modulation(self, c: Tensor) -> list[Modulation]:
        return self.split(self.adaLN_modulation(c))

    def split(self, rows: Tensor) -> list[Modulation]:
        """rows (N, 4D), what `adaLN_modulation` gives; shifts and scales are views of it."""
        m = rows.chunk(4, dim=1)
        one = rows.new_ones(1).expand_as(m[0])
        return [Modulation(m[0], m[1], one), Modulation(m[2], m[3], one)]


class InContextBlock(Block):
    """A plain ViT block: the conditioning is among the tokens."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float = 4.0) -> None:
        super().__init__(dim, num_heads, mlp_ratio)
        self.norm1, self.norm2 = Affine(dim), Affine(dim)

    def modulation(self, c: Tensor) -> list[Modulation]:
        return [self.norm1(c), self.norm2(c)]


class CrossAttentionBlock(Block):
    """A ViT block with a cross-attention to the conditioning after the self-attention."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float = 4.0) -> None:
        super().__init__(dim, num_heads, mlp_ratio)
        self.cross_attn = CrossAttention(dim, num_heads)
        self.norm1, self.norm_cross, self.norm2 = Affine(dim), Affine(dim), Affine(dim)

    def modulation(self, c: Tensor) -> list[Modulation]:
        return [self.norm1(c), self.norm_cross(c), self.norm2(c)]

    def branches(self, context: Tensor | None) -> list[Callable[[Tensor], Tensor]]:
        assert context is not None
        return [self.attn, lambda h: self.cross_attn(h, context), self.mlp]


class FinalLayer(nn.Module):
    """The last norm's shift and scale, and the Linear that makes tokens an image again (section 3.2, decoder)."""

    def __init__(self, dim: int, patch_size: int, out_channels: int, adaptive: bool = True) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.linear = nn.Linear(dim, patch_size * patch_size * out_channels)
        if adaptive:
            self.adaLN_modulation = nn.Sequential(nn.SiLU(), Linear(dim, 2 * dim))
        else:
            self.norm = Affine(dim)
        self.adaptive = adaptive

    def modulation(self, c: Tensor) -> Modulation:
        return self.split(self.adaLN_modulation(c)) if self.adaptive else self.norm(c)

    def split(self, rows: Tensor) -> Modulation:
        """rows (N, 2D), what `adaLN_modulation` gives; shift and scale are views of it."""
        shift, scale = rows.chunk(2, dim=1)
        return Modulation(shift, scale, shift.new_ones(1).expand_as(shift))

    def forward(self, h: Tensor, grid: tuple[int, int]) -> Tensor:
        """h (N, T, D), already normalised and modulated by the last block's end -> (N, C, h*p, w*p)."""
        return ops.final_layer(
            h, None, None, self.linear.weight, self.linear.bias, grid=grid, patch_size=self.patch_size
        )
