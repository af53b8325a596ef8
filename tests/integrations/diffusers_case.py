# SPDX-License-Identifier: Apache-2.0
"""A tiny random model of each diffusers architecture that is patched, and a batch of two for it.

A case is a configuration and a function that makes the model's arguments; `r(*shape)` gives random numbers. The two
samples have different timesteps, which bfloat16 holds exactly.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import diffusers
import torch
from torch import Tensor, nn

Make = Callable[..., Tensor]

STEPS = torch.tensor([3.0, 872.0])
PART = torch.tensor([0.125, 0.75])


class Case(NamedTuple):
    model: str
    config: dict[str, Any]
    inputs: Callable[[Make], dict[str, Any]]
    shrink: Callable[[nn.Module], None] = lambda model: None  # parts whose size no configuration sets

    def build(self, seed: int = 0) -> nn.Module:
        """In training mode, without dropout; nothing that a block scales with is zero."""
        torch.manual_seed(seed)
        model = getattr(diffusers, self.model)(**self.config)
        self.shrink(model)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.unique().numel() == 1:  # zeros, or a norm's ones
                    parameter.add_(torch.randn_like(parameter) * 0.3)
        return model.train()

    def batch(self, dtype: torch.dtype = torch.float32, seed: int = 1) -> dict[str, Any]:
        """Numbers rounded to `dtype`; timesteps stay as they are."""
        g = torch.Generator().manual_seed(seed)

        def cast(value: Any) -> Any:
            if isinstance(value, list):
                return [cast(v) for v in value]
            kept = not isinstance(value, Tensor) or value.dtype != torch.float32 or value is STEPS or value is PART
            return value if kept else value.to(dtype)

        return {k: cast(v) for k, v in self.inputs(lambda *shape: torch.randn(*shape, generator=g)).items()}


HEADS = {"num_attention_heads": 2, "attention_head_dim": 16}


def mask(*lengths: int, size: int = 5) -> Tensor:
    return torch.stack([torch.arange(size) < n for n in lengths])
