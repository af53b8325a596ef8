# SPDX-License-Identifier: Apache-2.0
"""Diffusion and flow matching over any callable model: training losses, samplers, guidance.

LEGEND: N batch, C channels, H height, W width, K steps of a (respaced) chain.
"""

from __future__ import annotations

from dit_fast.diffusion.flow import Flow, create_flow
from dit_fast.diffusion.guidance import guide, with_guidance
from dit_fast.diffusion.losses import Losses
from dit_fast.diffusion.respacing import Respacing, space_timesteps
from dit_fast.diffusion.sampling import Samplers
from dit_fast.diffusion.schedule import Schedule, make_betas

__all__ = ["Diffusion", "Flow", "create_diffusion", "create_flow", "guide", "space_timesteps", "with_guidance"]


class Diffusion(Losses, Samplers):
    """A diffusion process over (N,C,H,W) tensors; made by `create_diffusion`."""


def create_diffusion(
    timestep_respacing: Respacing = "",
    noise_schedule: str = "linear",
    learn_sigma: bool = True,
    sigma_small: bool = False,
    predict_xstart: bool = False,
    diffusion_steps: int = 1000,
) -> Diffusion:
    """Make the diffusion process that a DiT is trained and sampled with (arXiv 2212.09748, section 4).

    Args:
        timestep_respacing: which timesteps to keep: "" (all), "250", "ddim50", "10,10,20", an int or a list
            of ints; see `space_timesteps`.
        noise_schedule: "linear" (DDPM) or "squaredcos_cap_v2" (cosine, Improved DDPM); see `make_betas`.
        learn_sigma: the model outputs 2C channels, the second C giving the variance between the posterior's
            (at -1) and beta (at 1).
        sigma_small: without learn_sigma, the fixed variance: the posterior's if True, beta if False.
        predict_xstart: the model predicts x_0, not the noise.
        diffusion_steps: timesteps of the full chain, which the model is trained on.

    Raises ValueError naming the argument, what was expected and what came.
    """
    betas = make_betas(noise_schedule, diffusion_steps)
    schedule = Schedule(betas, space_timesteps(diffusion_steps, timestep_respacing))
    return Diffusion(schedule, learn_sigma, sigma_small, predict_xstart)
