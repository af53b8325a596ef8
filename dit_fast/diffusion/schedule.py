# SPDX-License-Identifier: Apache-2.0
"""Noise schedules, and every per-timestep coefficient of the chain as one table that lives on the device.

LEGEND: N batch, K steps of the (respaced) chain, R coefficients per step. Step k of the chain is timestep
`timesteps[k]` of the trained schedule. In formulas b = beta, ab = alpha-bar = prod(1 - b), ab' = ab one step
earlier.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

# Devices whose torch backend has no float64: their table is cast once to float32, from the float64 source.
NO_FLOAT64 = frozenset({"mps"})


def make_betas(noise_schedule: str, diffusion_steps: int) -> Tensor:
    """Betas of the full chain: float64 (diffusion_steps,) on the CPU.

    * `"linear"`: from 1e-4 to 0.02 at 1000 steps (DDPM, arXiv 2006.11239, section 4); at another count both
      ends are multiplied by 1000 / diffusion_steps, which keeps the final ab about the same. Needs more than
      20 steps, or the last beta would reach 1.
    * `"squaredcos_cap_v2"`: ab(u) = cos^2((u + 0.008) / 1.008 * pi/2) for u = t/T, and
      b = min(1 - ab(u + 1/T) / ab(u), 0.999) (Improved DDPM, arXiv 2102.09672, eq. 17).

    Raises ValueError for an unknown `noise_schedule` or a `diffusion_steps` that the schedule cannot have.
    """
    if isinstance(diffusion_steps, bool) or not isinstance(diffusion_steps, int) or diffusion_steps < 1:
        raise ValueError(f"diffusion_steps: expected an int >= 1, came {diffusion_steps!r}")
    if noise_schedule == "linear":
        scale = 1000 / diffusion_steps
        if scale * 0.02 >= 1:
            raise ValueError(
                f"diffusion_steps: expected more than 20 for noise_schedule 'linear', came {diffusion_steps}"
            )
        return torch.linspace(scale * 1e-4, scale * 0.02, diffusion_steps, dtype=torch.float64, device="cpu")
    if noise_schedule == "squaredcos_cap_v2":
        u = torch.arange(diffusion_steps + 1, dtype=torch.float64, device="cpu") / diffusion_steps
        alpha_bar = torch.cos((u + 0.008) / 1.008 * (math.pi / 2)) ** 2
        return (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=0.999)
    raise ValueError(f"noise_schedule: expected 'linear' or 'squaredcos_cap_v2', came {noise_schedule!r}")


class Coefficients(NamedTuple):
    """One tensor per coefficient: (K,) in the float64 source, (N,1,...,1) after a lookup.

    The rows are chosen so that none is formed from others by a difference: rounded to float32, each still has
    all of float32's digits.
    """

    sqrt_ab: Tensor  # sqrt(ab)
    sqrt_one_minus_ab: Tensor  # sqrt(1 - ab)
    log_one_minus_ab: Tensor  # ln(1 - ab)
    recip_sqrt_ab: Tensor  # 1 / sqrt(ab)
    sqrt_recip_ab_minus_one: Tensor  # sqrt(1/ab - 1)
    posterior_x0: Tensor  # b sqrt(ab') / (1 - ab): weight of x_0 in the posterior mean
    posterior_xt: Tensor  # (1 - ab') sqrt(1 - b) / (1 - ab): weight of x_t in the posterior mean
    posterior_log_variance: Tensor  # ln(b (1 - ab') / (1 - ab)); step 0, where that is ln 0, repeats step 1
    log_beta: Tensor  # ln b
    large_log_variance: Tensor  # ln b; step 0 repeats step 1 of the posterior
    sqrt_ab_prev: Tensor  # sqrt(ab')
    one_minus_ab_prev: Tensor  # 1 - ab'
    ddim_sigma: Tensor  # sqrt(b (1 - ab') / (1 - ab)), 0 at step 0: DDIM's sigma at eta = 1


def _coefficients(ab: Tensor, ab_prev: Tensor, beta: Tensor) -> Coefficients:
    """All rows, float64 (K,), after DDPM eqs. 4, 6 and 7."""
    posterior_variance = beta * (1 - ab_prev) / (1 - ab)
    first = posterior_variance[1:2] if len(ab) > 1 else beta
    posterior_log_variance = torch.cat([first, posterior_variance[1:]]).log()
    return Coefficients(
        sqrt_ab=ab.sqrt(),
        sqrt_one_minus_ab=(1 - ab).sqrt(),
        log_one_minus_ab=(1 - ab).log(),
        recip_sqrt_ab=ab.rsqrt(),
        sqrt_recip_ab_minus_one=(1 / ab - 1).sqrt(),
        posterior_x0=beta * ab_prev.sqrt() / (1 - ab),
        posterior_xt=(1 - ab_prev) * (ab / ab_prev).sqrt() / (1 - ab),
        posterior_log_variance=posterior_log_variance,
        log_beta=beta.log(),
        large_log_variance=torch.cat([first, beta[1:]]).log(),
        sqrt_ab_prev=ab_prev.sqrt(),
        one_minus_ab_prev=1 - ab_prev,
        ddim_sigma=posterior_variance.sqrt(),
    )


class Schedule:
    """The coefficients of a chain, computed once in float64 and copied once to each device that asks.

    After that first copy a lookup is one gather and one cast on the device: no host copy, no synchronisation,
    so a step can be captured in a CUDA graph (run one step on the device before the capture).

    Args: `betas` float64 (T,) of the full chain; `timesteps`: the K kept ones, ascending.
    """

    def __init__(self, betas: Tensor, timesteps: tuple[int, ...]) -> None:
        self.timesteps = timesteps
        self._kept = torch.tensor(timesteps, dtype=torch.int64, device="cpu")
        ab = torch.cumprod(1 - betas, dim=0)[self._kept]
        ab_prev = torch.cat([torch.ones_like(ab[:1]), ab[:-1]])
        self.alphas_cumprod = ab
        self.betas = 1 - ab / ab_prev  # of the respaced chain: Improved DDPM eq. 19
        self._source = torch.stack(_coefficients(ab, ab_prev, self.betas), dim=1)  # (K, R)
        self._on_device: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def __len__(self) -> int:
        return len(self.timesteps)

    def _tables(self, device: torch.device) -> tuple[Tensor, Tensor]:
        if device not in self._on_device:
            dtype = torch.float32 if device.type in NO_FLOAT64 else torch.float64
            self._on_device[device] = (self._source.to(device, dtype), self._kept.to(device))
        return self._on_device[device]

    def at(self, t: Tensor, like: Tensor) -> Coefficients:
        """Coefficients of the steps t int64 (N,), shaped (N,1,...,1) to multiply `like` (N, ...).

        Their dtype is float32, or float64 where `like` is float64.
        """
        table, _ = self._tables(t.device)
        rows = table.index_select(0, t).to(torch.promote_types(like.dtype, torch.float32))  # (N, R)
        shape = (-1,) + (1,) * (like.dim() - 1)
        return Coefficients(*(row.view(shape) for row in rows.unbind(1)))

    def original(self, t: Tensor) -> Tensor:
        """Timesteps of the full chain, which the model knows, for the steps t of this chain: int64 (N,)."""
        return self._tables(t.device)[1].index_select(0, t)
