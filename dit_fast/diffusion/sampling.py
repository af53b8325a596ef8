# SPDX-License-Identifier: Apache-2.0
"""Ancestral (DDPM) and DDIM sampling.

LEGEND: N batch, C channels, H height, W width; x is (N,C,H,W), or any (N,C,...); t is int64 (N,), steps of
this chain. A step makes no host copy and no synchronisation, so it can be captured in a CUDA graph after one
step of warm-up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from dit_fast.diffusion.checks import Model, check_like, draw_noise
from dit_fast.diffusion.loops import Device, last_sample, start_noise, with_bar
from dit_fast.diffusion.process import DenoisedFn, ModelKwargs, Process

CondFn = Callable[..., Tensor]


class Samplers(Process):
    """Single steps, loops that yield every step, and loops that return the last sample.

    Arguments shared by all of them:
        model: called as model(x, timesteps, **model_kwargs), timesteps int64 (N,) of the full chain; returns
            (N,2C,H,W) if learn_sigma, else (N,C,H,W).
        clip_denoised: clip each predicted x_0 to [-1, 1] (for pixels; not for latents).
        denoised_fn: maps each predicted x_0, before the clipping.
        cond_fn: cond_fn(x, timesteps, **model_kwargs) -> gradient of ln p(y | x) in x, (N,C,H,W).
        model_kwargs: keyword arguments for model and cond_fn.
        generator: source of all noise, on the device of x.
        noise: of a single step, N(0, 1) like x that the caller has drawn; then `generator` is not used.
    Errors: ValueError that names the argument, or `model` for an output of another shape.
    """

    def p_sample(
        self,
        model: Model,
        x: Tensor,
        t: Tensor,
        clip_denoised: bool = True,
        denoised_fn: DenoisedFn | None = None,
        cond_fn: CondFn | None = None,
        model_kwargs: ModelKwargs | None = None,
        *,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Draw x_{t-1} from p(x_{t-1} | x_t) (DDPM algorithm 2); no noise is added where t = 0.

        cond_fn shifts the mean by variance * gradient (arXiv 2105.05233, algorithm 1). Returns `sample` and
        `pred_xstart`, (N,C,H,W) in x's dtype.
        """
        _, p = self._predict(model, x, t, clip_denoised, denoised_fn, model_kwargs)
        mean = p.mean
        if cond_fn is not None:
            mean = mean + p.log_variance.exp() * self._gradient(cond_fn, x, t, model_kwargs)
        noise = _noise_for(x, mean.dtype, generator, noise)
        live = (t != 0).to(mean.dtype).view((-1,) + (1,) * (x.dim() - 1))
        sample = mean + live * torch.exp(0.5 * p.log_variance) * noise
        return {"sample": sample.to(x.dtype), "pred_xstart": p.pred_xstart.to(x.dtype)}

    def ddim_sample(
        self,
        model: Model,
        x: Tensor,
        t: Tensor,
        clip_denoised: bool = True,
        denoised_fn: DenoisedFn | None = None,
        cond_fn: CondFn | None = None,
        model_kwargs: ModelKwargs | None = None,
        eta: float = 0.0,
        *,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """One DDIM step (arXiv 2010.02502, eq. 12, with sigma of eq. 16).

        eta = 0 draws no noise; eta = 1 is ancestral with the posterior's variance. A learned variance is not
        used. Where x_0 was clipped or mapped, eps follows it. cond_fn changes eps by -sqrt(1 - ab) * gradient
        (arXiv 2105.05233, algorithm 2). Returns `sample` and `pred_xstart` in x's dtype.
        """
        if not 0 <= eta <= 1:
            raise ValueError(f"eta: expected 0 <= eta <= 1, came {eta}")
        c, p = self._predict(model, x, t, clip_denoised, denoised_fn, model_kwargs)
        pred_xstart, eps = p.pred_xstart, self._eps(c, x, p.pred_xstart)
        if cond_fn is not None:
            eps = eps - c.sqrt_one_minus_ab * self._gradient(cond_fn, x, t, model_kwargs)
            pred_xstart = c.recip_sqrt_ab * x - c.sqrt_recip_ab_minus_one * eps
        sigma = eta * c.ddim_sigma
        rest = (c.one_minus_ab_prev - sigma**2).clamp(min=0)  # at eta = 1 and few steps it may round below 0
        sample = c.sqrt_ab_prev * pred_xstart + rest.sqrt() * eps
        if eta > 0:
            sample = sample + sigma * _noise_for(x, sample.dtype, generator, noise)  # sigma is 0 at t = 0
        return {"sample": sample.to(x.dtype), "pred_xstart": pred_xstart.to(x.dtype)}

    def p_sample_loop(
        self,
        model: Model,
        shape: Sequence[int],
        noise: Tensor | None = None,
        clip_denoised: bool = True,
        denoised_fn: DenoisedFn | None = None,
        cond_fn: CondFn | None = None,
        model_kwargs: ModelKwargs | None = None,
        device: Device = None,
        progress: bool = False,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Ancestral sampling from noise to x_0 without gradients: `shape` (N,C,H,W), in noise's dtype.

        noise: x_T of that shape; drawn on `device` where None (default: the device of model's parameters, or
        torch's default device where it has none). The chain's state is kept in its dtype, so give float32
        and let the model cast. progress: show tqdm's bar.
        """
        steps = self.p_sample_loop_progressive(
            model,
            shape,
            noise,
            clip_denoised,
            denoised_fn,
            cond_fn,
            model_kwargs,
            device,
            progress,
            generator=generator,
        )
        return last_sample(steps)

    def p_sample_loop_progressive(
        self,
        model: Model,
        shape: Sequence[int],
        noise: Tensor | None = None,
        clip_denoised: bool = True,
        denoised_fn: DenoisedFn | None = None,
        cond_fn: CondFn | None = None,
        model_kwargs: ModelKwargs | None = None,
        device: Device = None,
        progress: bool = False,
        *,
        generator: torch.Generator | None = None,
    ) -> Iterator[dict[str, Tensor]]:
        """`p_sample_loop`, yielding p_sample's dict after every step; a replaced `sample` is kept."""

        def step(x: Tensor, t: Tensor) -> dict[str, Tensor]:
            return self.p_sample(
                model, x, t, clip_denoised, denoised_fn, cond_fn, model_kwargs, generator=generator
            )

        return self._loop(step, start_noise(model, shape, noise, device, generator), progress)

    def ddim_sample_loop(
        self,
        model: Model,
        shape: Sequence[int],
        noise: Tensor | None = None,
        clip_denoised: bool = True,
        denoised_fn: DenoisedFn | None = None,
        cond_fn: CondFn | None = None,
        model_kwargs: ModelKwargs | None = None,
        device: Device = None,
        progress: bool = False,
        eta: float = 0.0,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """DDIM sampling from noise to x_0; arguments as for `p_sample_loop`, eta as for `ddim_sample`."""
        steps = self.ddim_sample_loop_progressive(
            model,
            shape,
            noise,
            clip_denoised,
            denoised_fn,
            cond_fn,
            model_kwargs,
            device,
            progress,
            eta,
            generator=generator,
        )
        return last_sample(steps)

    def ddim_sample_loop_progressive(
        self,
        model: Model,
        shape: Sequence[int],
        noise: Tensor | None = None,
        clip_denoised: bool = True,
        denoised_fn: DenoisedFn | None = None,
        cond_fn: CondFn | None = None,
        model_kwargs: ModelKwargs | None = None,
        device: Device = None,
        progress: bool = False,
        eta: float = 0.0,
        *,
        generator: torch.Generator | None = None,
    ) -> Iterator[dict[str, Tensor]]:
        """`ddim_sample_loop`, yielding ddim_sample's dict after every step; a replaced `sample` is kept."""

        def step(x: Tensor, t: Tensor) -> dict[str, Tensor]:
            return self.ddim_sample(
                model, x, t, clip_denoised, denoised_fn, cond_fn, model_kwargs, eta, generator=generator
            )

        return self._loop(step, start_noise(model, shape, noise, device, generator), progress)

    def _loop(
        self, step: Callable[[Tensor, Tensor], dict[str, Tensor]], x: Tensor, progress: bool
    ) -> Iterator[dict[str, Tensor]]:
        for i in with_bar(range(self.num_timesteps - 1, -1, -1), progress):
            t = torch.full(x.shape[:1], i, dtype=torch.int64, device=x.device)
            with torch.no_grad():  # around the step only: what the caller does between steps is the caller's
                out = step(x, t)
            yield out
            x = out["sample"]

    def _gradient(self, cond_fn: CondFn, x: Tensor, t: Tensor, model_kwargs: ModelKwargs | None) -> Tensor:
        gradient = cond_fn(x, self.schedule.original(t), **(model_kwargs or {}))
        if gradient.shape != x.shape:
            raise ValueError(
                f"cond_fn: expected it to return shape {tuple(x.shape)}, came {tuple(gradient.shape)}"
            )
        return gradient


def _noise_for(
    x: Tensor, dtype: torch.dtype, generator: torch.Generator | None, noise: Tensor | None
) -> Tensor:
    """The noise of one step in `dtype`: what was given, checked, or fresh."""
    if noise is None:
        return draw_noise(x, dtype, generator)
    check_like("noise", noise, "x", x)
    return noise.to(dtype)
