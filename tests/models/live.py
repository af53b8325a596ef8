# SPDX-License-Identifier: Apache-2.0
"""Small models with live values in the layers that start at zero, and inputs for them."""

import torch

from dit_fast.models import DiT
from dit_fast.parity import enliven


def live_model(seed: int = 0, **kwargs) -> DiT:
    torch.manual_seed(seed)
    model = DiT(**{**dict(input_size=8, hidden_size=96, depth=3, num_heads=2, num_classes=5), **kwargs})
    return enliven(model).eval()


def batch(model: DiT, n: int = 3, height: int = 8, width: int = 8, seed: int = 1):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, model.in_channels, height, width, generator=g)
    t = torch.randint(0, 1000, (n,), generator=g)
    y = torch.randint(0, model.num_classes, (n,), generator=g) if model.num_classes else None
    return x, t, y
