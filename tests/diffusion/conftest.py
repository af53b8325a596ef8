# SPDX-License-Identifier: Apache-2.0
"""An oracle: data that are N(mu, s^2) in every element, for which the perfect model and the chain are known.

Everything here is plain Python floats after the papers' formulas, and shares nothing with the package.

LEGEND: N batch, C channels, H height, W width; ab = alpha-bar of a timestep, ab' = ab one step earlier.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor


@dataclass
class Step:
    """One step of a respaced chain, with the exact x_0 = gain x_t + offset expected for Gaussian data."""

    timestep: int
    ab: float
    ab_prev: float
    mu: float
    s: float

    @property
    def beta(self) -> float:
        return 1 - self.ab / self.ab_prev

    @property
    def marginal(self) -> float:
        """Var x_t."""
        return self.ab * self.s**2 + 1 - self.ab

    @property
    def gain(self) -> float:
        return math.sqrt(self.ab) * self.s**2 / self.marginal

    @property
    def offset(self) -> float:
        return self.mu * (1 - self.ab) / self.marginal

    @property
    def posterior_variance(self) -> float:
        return self.beta * (1 - self.ab_prev) / (1 - self.ab)

    @property
    def weight_x0(self) -> float:
        return self.beta * math.sqrt(self.ab_prev) / (1 - self.ab)

    @property
    def weight_xt(self) -> float:
        return (1 - self.ab_prev) * math.sqrt(1 - self.beta) / (1 - self.ab)

    @property
    def exact_variance(self) -> float:
        """Var(x_{t-1} | x_t), which for Gaussian data is the variance of the true reverse step."""
        return self.posterior_variance + self.weight_x0**2 * self.s**2 * (1 - self.ab) / self.marginal


class GaussianChain:
    """The chain over `timesteps` of the 1000-step linear schedule, and its perfect model."""

    def __init__(self, mu: float, s: float, timesteps: list[int]) -> None:
        alpha_bars, product = [], 1.0
        for i in range(1000):
            product *= 1 - (1e-4 + (0.02 - 1e-4) * i / 999)
            alpha_bars.append(product)
        previous = [1.0] + [alpha_bars[t] for t in timesteps[:-1]]
        self.mu, self.s = mu, s
        self.steps = [Step(t, alpha_bars[t], p, mu, s) for t, p in zip(timesteps, previous, strict=True)]
        self.by_timestep = {step.timestep: step for step in self.steps}

    def data(self, *shape: int, generator: torch.Generator) -> Tensor:
        return self.mu + self.s * torch.randn(*shape, dtype=torch.float64, generator=generator)

    def eps_model(self, x: Tensor, t: Tensor) -> Tensor:
        """E[eps | x_t]; t are timesteps of the full chain."""
        out = torch.empty_like(x)
        for row, timestep in enumerate(t.tolist()):
            step = self.by_timestep[timestep]
            x0 = step.gain * x[row] + step.offset
            out[row] = (x[row] - math.sqrt(step.ab) * x0) / math.sqrt(1 - step.ab)
        return out

    def learned_model(self, x: Tensor, t: Tensor) -> Tensor:
        """E[eps | x_t], and the v whose interpolation in log variance is the exact reverse variance."""
        v = torch.empty_like(x)
        for row, timestep in enumerate(t.tolist()):
            step = self.by_timestep[timestep]
            clipped = step if step.posterior_variance > 0 else self.steps[1]
            low, high = math.log(clipped.posterior_variance), math.log(step.beta)
            v[row] = 2 * (math.log(step.exact_variance) - low) / (high - low) - 1
        return torch.cat([self.eps_model(x, t), v], dim=1)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def gaussian_chain() -> type[GaussianChain]:
    return GaussianChain


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(20221219)
