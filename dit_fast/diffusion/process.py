# SPDX-License-Identifier: Apache-2.0
"""The chain: q adds noise, p takes it away (DDPM, arXiv 2006.11239; Improved DDPM, arXiv 2102.09672).

LEGEND: N batch, C channels, H height, W width; x is (N,C,H,W), or any (N,C,...). t is int64 (N,), steps of
this chain; the model is given the timesteps of the full chain. Arithmetic is in float32, or float64 where x
is float64.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dit_fast.diffusion.checks import Model, check_image, check_like, check_output, check_steps, draw_noise
from dit_fast.diffusion.schedule import Coefficients, Schedule

DenoisedFn = Callable[[Tensor], Tensor]
ModelKwargs = Mapping[str, Any]


class Reverse(NamedTuple):
    """p(x_{t-1} | x_t) of a model, each (N,C,H,W) and float32 or float64."""

    mean: Tensor
    log_variance: Tensor
    pred_xstart: Tensor


class Process:
    """Forward and reverse distributions over one schedule; see `create_diffusion` for the arguments."""

    def __init__(
        self, schedule: Schedule, learn_sigma: bool, sigma_small: bool, predict_xstart: bool
    ) -> None:
        self.schedule = schedule
        self.learn_sigma = learn_sigma
        self.sigma_small = sigma_small
        self.predict_xstart = predict_xstart

    @property
    def num_timesteps(self) -> int:
        """K, the number of steps of this chain."""
        return len(self.schedule)

    @property
    def timestep_map(self) -> tuple[int, ...]:
        """For each step of this chain, its timestep in the full chain."""
        return self.schedule.timesteps

    @property
    def betas(self) -> Tensor:
        """float64 (K,) on the CPU."""
        return self.schedule.betas

    @property
    def alphas_cumprod(self) -> Tensor:
        """float64 (K,) on the CPU."""
        return self.schedule.alphas_cumprod

    def q_sample(
        self,
        x_start: Tensor,
        t: Tensor,
        noise: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draw x_t = sqrt(ab) x_start + sqrt(1 - ab) noise (DDPM eq. 4).

        x_start, noise: floating point (N,C,H,W), noise drawn from `generator` where None; t: int64 (N,).
        Returns (N,C,H,W) in x_start's dtype. ValueError names the argument that does not fit.
        """
        c = self._lookup("x_start", x_start, t)
        return self._diffuse(c, x_start, self._noise(c, x_start, noise, generator)).to(x_start.dtype)

    def q_mean_variance(self, x_start: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, variance and log variance of q(x_t | x_0) (DDPM eq. 4), each (N,C,H,W)."""
        c = self._lookup("x_start", x_start, t)
        mean = c.sqrt_ab * x_start
        return mean, (c.sqrt_one_minus_ab**2).expand_as(mean), c.log_one_minus_ab.expand_as(mean)

    def q_posterior_mean_variance(
        self, x_start: Tensor, x_t: Tensor, t: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, variance and log variance of q(x_{t-1} | x_t, x_0) (DDPM eqs. 6, 7), each (N,C,H,W).

        At t = 0 the variance is 0 and the log variance is clipped to that of t = 1.
        """
        c = self._lookup("x_start", x_start, t)
        check_like("x_t", x_t, "x_start", x_start)
        mean = c.posterior_x0 * x_start + c.posterior_xt * x_t
        return mean, (c.ddim_sigma**2).expand_as(mean), c.posterior_log_variance.expand_as(mean)

    def p_mean_variance(
        self,
        model: Model,
        x: Tensor,
        t: Tensor,
        clip_denoised: bool = True,
        denoised_fn: DenoisedFn | None = None,
        model_kwargs: ModelKwargs | None = None,
    ) -> dict[str, Tensor]:
        """Run the model and form p(x_{t-1} | x_t) (DDPM eq. 11; variance: Improved DDPM eq. 15).

        Returns `mean`, `variance`, `log_variance` and `pred_xstart`, each (N,C,H,W), float32 or float64.
        `denoised_fn` maps pred_xstart, then `clip_denoised` clips it to [-1, 1], before the mean is formed.
        """
        _, p = self._predict(model, x, t, clip_denoised, denoised_fn, model_kwargs)
        return {
            "mean": p.mean,
            "variance": p.log_variance.exp(),
            "log_variance": p.log_variance,
            "pred_xstart": p.pred_xstart,
        }

    def _lookup(self, name: str, x: Tensor, t: Tensor) -> Coefficients:
        check_image(name, x)
        check_steps(t, x, self.num_timesteps)
        return self.schedule.at(t, x)

    def _noise(
        self, c: Coefficients, x_start: Tensor, noise: Tensor | None, generator: torch.Generator | None
    ) -> Tensor:
        if noise is None:
            return draw_noise(x_start, c.sqrt_ab.dtype, generator)
        check_like("noise", noise, "x_start", x_start)
        return noise.to(c.sqrt_ab.dtype)

    def _diffuse(self, c: Coefficients, x_start: Tensor, noise: Tensor) -> Tensor:
        return c.sqrt_ab * x_start + c.sqrt_one_minus_ab * noise

    def _call(
        self, model: Model, x: Tensor, t: Tensor, model_kwargs: ModelKwargs | None
    ) -> tuple[Tensor, Tensor | None]:
        """The model's prediction (N,C,H,W) and, if sigma is learned, its variance output v (N,C,H,W)."""
        out = check_output(model(x, self.schedule.original(t), **(model_kwargs or {})), x, self.learn_sigma)
        out = out.to(torch.promote_types(x.dtype, torch.float32))
        if not self.learn_sigma:
            return out, None
        prediction, v = out.chunk(2, dim=1)
        return prediction, v

    def _log_variance(self, c: Coefficients, v: Tensor | None) -> Tensor:
        """Learned range: ln b at v = 1, ln of the posterior variance at v = -1 (Improved DDPM eq. 15)."""
        if v is None:
            return c.posterior_log_variance if self.sigma_small else c.large_log_variance
        return torch.lerp(c.posterior_log_variance, c.log_beta, (v + 1) / 2)

    def _xstart(self, c: Coefficients, x: Tensor, prediction: Tensor) -> Tensor:
        """x_0 from the model's prediction: DDPM eq. 4 solved for x_0."""
        if self.predict_xstart:
            return prediction
        return c.recip_sqrt_ab * x - c.sqrt_recip_ab_minus_one * prediction

    def _eps(self, c: Coefficients, x: Tensor, pred_xstart: Tensor) -> Tensor:
        """The noise that takes pred_xstart to x: DDPM eq. 4 solved for eps."""
        return (c.recip_sqrt_ab * x - pred_xstart) / c.sqrt_recip_ab_minus_one

    def _reverse(self, c: Coefficients, x: Tensor, pred_xstart: Tensor, v: Tensor | None) -> Reverse:
        mean = c.posterior_x0 * pred_xstart + c.posterior_xt * x
        return Reverse(mean, self._log_variance(c, v).expand_as(mean), pred_xstart)

    def _predict(
        self,
        model: Model,
        x: Tensor,
        t: Tensor,
        clip_denoised: bool,
        denoised_fn: DenoisedFn | None,
        model_kwargs: ModelKwargs | None,
    ) -> tuple[Coefficients, Reverse]:
        c = self._lookup("x", x, t)
        prediction, v = self._call(model, x, t, model_kwargs)
        pred_xstart = self._xstart(c, x, prediction)
        if denoised_fn is not None:
            pred_xstart = denoised_fn(pred_xstart)
        if clip_denoised:
            pred_xstart = pred_xstart.clamp(-1, 1)
        return c, self._reverse(c, x, pred_xstart, v)
