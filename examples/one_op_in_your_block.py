# SPDX-License-Identifier: Apache-2.0
"""One fused op in your own block: the residual, its gate and the norm that follows, in one pass over the tokens."""

import torch
from torch import Tensor, nn

from dit_fast import ops


class YourBlock(nn.Module):
    """Two branches that are gated and normalised by a conditioning c."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.mix, self.norm, self.feed = nn.Linear(dim, dim), nn.LayerNorm(dim, 1e-6, False), nn.Linear(dim, dim)
        self.modulation = nn.Linear(dim, 3 * dim)

    def forward(self, x: Tensor, c: Tensor, fused: bool) -> Tensor:
        gate, shift, scale = self.modulation(c).chunk(3, dim=1)  # (N, D) each; views are fine
        y = self.mix(x)  # (N, T, D)
        if fused:
            x, h = ops.gated_residual_adaln(x, y, gate, shift, scale, eps=1e-6)
        else:
            x = x + gate[:, None] * y
            h = self.norm(x) * (1 + scale[:, None]) + shift[:, None]
        return x + self.feed(h)


torch.manual_seed(0)
block, x, c = YourBlock(64), torch.randn(4, 16, 64), torch.randn(4, 64)
for fused in (False, True):
    block.zero_grad()
    out = block(x, c, fused)
    out.square().mean().backward()
    print(f"fused={fused}: output {out.std().item():.6f}, gradient {block.modulation.weight.grad.std().item():.6f}")
assert torch.allclose(block(x, c, True), block(x, c, False), atol=1e-5)
