# SPDX-License-Identifier: Apache-2.0
"""Single steps against diffusers' schedulers, set to float64 so that only the formulas can differ.

LEGEND: x is (N,C,H,W): N batch, C channels, H height, W width. t: timesteps of the 1000-step chain.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from torch import Tensor

from dit_fast.diffusion import create_diffusion

SHAPE = (2, 3, 4, 5)
SCHEDULES = ["linear", "squaredcos_cap_v2"]
VARIANCES = {"fixed_small": (False, True), "fixed_large": (False, False), "learned_range": (True, False)}


def in_float64(scheduler: Any, noise_schedule: str) -> Any:
    """Give the scheduler the full chain in float64 (diffusers builds it in float32)."""
    full = create_diffusion(noise_schedule=noise_schedule)
    torch.testing.assert_close(
        scheduler.betas.double(), full.betas, rtol=3e-4, atol=0
    )  # float32 of 1 - ratio
    torch.testing.assert_close(scheduler.alphas_cumprod.double(), full.alphas_cumprod, rtol=1e-3, atol=0)
    scheduler.betas, scheduler.alphas_cumprod = full.betas, full.alphas_cumprod
    scheduler.alphas = 1 - full.betas
    one = torch.ones((), dtype=torch.float64)
    scheduler.one = scheduler.final_alpha_cumprod = one
    return scheduler


def outputs(channels: int) -> tuple[Tensor, Tensor]:
    x = torch.randn(SHAPE, dtype=torch.float64)
    return x, torch.randn(2, channels, 4, 5, dtype=torch.float64)


@pytest.mark.parametrize("noise_schedule", SCHEDULES)
@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize("prediction", ["epsilon", "sample"])
@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("respacing", ["", "250", "ddim50"])
def test_ddpm_step(noise_schedule: str, variance: str, prediction: str, clip: bool, respacing: str) -> None:
    learn_sigma, sigma_small = VARIANCES[variance]
    diffusion = create_diffusion(respacing, noise_schedule, learn_sigma, sigma_small, prediction == "sample")
    scheduler: Any = DDPMScheduler(
        beta_start=1e-4,
        beta_end=0.02,
        beta_schedule=noise_schedule,
        variance_type=variance,
        prediction_type=prediction,
        clip_sample=clip,
    )
    in_float64(scheduler, noise_schedule).set_timesteps(timesteps=list(reversed(diffusion.timestep_map)))
    k = diffusion.num_timesteps
    for step in (0, 1, 2, k // 2, k - 1):
        x, out = outputs(6 if learn_sigma else 3)
        t = torch.full((2,), step)
        ours = diffusion.p_sample(
            lambda x, t, out=out: out, x, t, clip, generator=torch.Generator().manual_seed(step)
        )
        timestep = diffusion.timestep_map[step]
        theirs = scheduler.step(out, timestep, x, generator=torch.Generator().manual_seed(step))
        torch.testing.assert_close(ours["pred_xstart"], theirs.pred_original_sample, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(ours["sample"], theirs.prev_sample, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("noise_schedule", SCHEDULES)
@pytest.mark.parametrize("prediction", ["epsilon", "sample"])
@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_ddim_step(noise_schedule: str, prediction: str, clip: bool, eta: float) -> None:
    diffusion = create_diffusion(
        "ddim50", noise_schedule, learn_sigma=False, predict_xstart=prediction == "sample"
    )
    scheduler: Any = DDIMScheduler(
        beta_start=1e-4,
        beta_end=0.02,
        beta_schedule=noise_schedule,
        prediction_type=prediction,
        clip_sample=clip,
        timestep_spacing="leading",
    )
    in_float64(scheduler, noise_schedule).set_timesteps(50)
    assert list(reversed(scheduler.timesteps.tolist())) == list(diffusion.timestep_map)
    for step in (0, 1, 2, 25, 49):
        x, out = outputs(3)
        t = torch.full((2,), step)
        ours = diffusion.ddim_sample(
            lambda x, t, out=out: out, x, t, clip, eta=eta, generator=torch.Generator().manual_seed(step)
        )
        theirs = scheduler.step(
            out,
            diffusion.timestep_map[step],
            x,
            eta=eta,
            use_clipped_model_output=True,
            generator=torch.Generator().manual_seed(step),
        )
        torch.testing.assert_close(ours["pred_xstart"], theirs.pred_original_sample, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(ours["sample"], theirs.prev_sample, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("noise_schedule", SCHEDULES)
def test_q_sample(noise_schedule: str) -> None:
    diffusion = create_diffusion(noise_schedule=noise_schedule)
    scheduler = in_float64(
        DDPMScheduler(beta_start=1e-4, beta_end=0.02, beta_schedule=noise_schedule), noise_schedule
    )
    x, noise = outputs(3)
    t = torch.tensor([7, 950])
    torch.testing.assert_close(
        diffusion.q_sample(x, t, noise), scheduler.add_noise(x, noise, t), rtol=1e-12, atol=1e-12
    )
