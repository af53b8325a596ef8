# SPDX-License-Identifier: Apache-2.0
"""The hybrid training loss and the variational bound (Improved DDPM, arXiv 2102.09672, section 3.1).

LEGEND: N batch, C channels, H height, W width, K steps of the chain; x is (N,C,H,W), or any (N,C,...).
"""

from __future__ import annotations

import torch
from torch import Tensor

from dit_fast.diffusion.checks import Model, check_image, check_like
from dit_fast.diffusion.likelihood import bits_per_dim, discretized_gaussian_nll, normal_kl
from dit_fast.diffusion.process import ModelKwargs, Process, Reverse
from dit_fast.diffusion.schedule import Coefficients

VLB_WEIGHT = 1e-3  # lambda in L_hybrid = L_simple + lambda L_vlb (Improved DDPM eq. 16)


class Losses(Process):
    """Training losses and bits per dimension."""

    def draw_times(
        self, n: int, *, device: torch.device | str = "cpu", generator: torch.Generator | None = None
    ) -> Tensor:
        """The steps that a batch of n is trained at: int64 (n,), uniform over this chain."""
        return torch.randint(0, self.num_timesteps, (n,), device=device, generator=generator)

    def training_losses(
        self,
        model: Model,
        x_start: Tensor,
        t: Tensor,
        model_kwargs: ModelKwargs | None = None,
        noise: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        """One training step's losses (Improved DDPM eq. 16; DDPM eq. 14).

        Args:
            model: called as model(x_t, timesteps, **model_kwargs); x_t (N,C,H,W) in x_start's dtype,
                timesteps int64 (N,) of the full chain. Returns (N,2C,H,W) if learn_sigma, else (N,C,H,W), in
                any floating dtype.
            x_start: floating point (N,C,H,W), scaled to about [-1, 1].
            t: int64 (N,), steps of this chain. Its range is checked on the CPU only.
            noise: like x_start; drawn from `generator` where None.

        Returns a dict of float32 (float64 for float64 x_start) tensors (N,), means over all but the batch:
            `mse`: squared error of the predicted noise (of x_start if predict_xstart).
            `vb`: the bound's term in bits per dimension, times K / 1000. That weight is lambda L_vlb with
                lambda = 0.001 and L_vlb a sum of K terms of which one is drawn: 1 for 1000 steps. The
                prediction is detached in it, so it trains only the variance.
            `loss`: mse + vb if learn_sigma. With a fixed variance it is mse, and vb has no gradient.

        Raises ValueError naming the argument that does not fit, or `model` for an output of another shape.
        """
        c = self._lookup("x_start", x_start, t)
        noise = self._noise(c, x_start, noise, generator)
        x_t = self._diffuse(c, x_start, noise).to(x_start.dtype)
        prediction, v = self._call(model, x_t, t, model_kwargs)
        target = x_start if self.predict_xstart else noise
        mse = ((target - prediction) ** 2).flatten(1).mean(1)
        p = self._reverse(c, x_t, self._xstart(c, x_t, prediction.detach()), v)
        vb = self._vb_bits(c, x_start, x_t, t, p) * (VLB_WEIGHT * self.num_timesteps)
        return {"loss": mse + vb if self.learn_sigma else mse, "mse": mse, "vb": vb}

    def vlb_terms(
        self,
        model: Model,
        x_start: Tensor,
        x_t: Tensor,
        t: Tensor,
        clip_denoised: bool = True,
        model_kwargs: ModelKwargs | None = None,
    ) -> dict[str, Tensor]:
        """One term of the bound per sample, unweighted (DDPM eq. 5; the decoder at t = 0: eq. 13).

        x_start, x_t: floating point (N,C,H,W); t: int64 (N,). Returns `vb` (N,), bits per dimension: the KL
        from q(x_{t-1} | x_t, x_0) to the model where t > 0 and the discretized negative log likelihood where
        t = 0; and `pred_xstart` (N,C,H,W).
        """
        check_image("x_start", x_start)
        check_like("x_t", x_t, "x_start", x_start)
        c, p = self._predict(model, x_t, t, clip_denoised, None, model_kwargs)
        return {"vb": self._vb_bits(c, x_start, x_t, t, p), "pred_xstart": p.pred_xstart}

    def prior_bpd(self, x_start: Tensor) -> Tensor:
        """KL(q(x_T | x_0) || N(0, 1)), which no model changes: (N,C,H,W) -> (N,), bits per dimension."""
        t = torch.full(x_start.shape[:1], self.num_timesteps - 1, dtype=torch.int64, device=x_start.device)
        mean, _, log_variance = self.q_mean_variance(x_start, t)
        zero = torch.zeros_like(mean)
        return bits_per_dim(normal_kl(mean, log_variance, zero, zero))

    @torch.no_grad()
    def calc_bpd_loop(
        self,
        model: Model,
        x_start: Tensor,
        clip_denoised: bool = True,
        model_kwargs: ModelKwargs | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        """The whole bound on x_start (N,C,H,W), one model call a step, without gradients.

        Returns `total_bpd` (N,) and `prior_bpd` (N,) in bits per dimension, and per step, as (N,K) columns in
        sampling order (t = K-1 first, t = 0 last): `vb` in bits per dimension, `xstart_mse` and `mse` of the
        noise.
        """
        columns: dict[str, list[Tensor]] = {"vb": [], "xstart_mse": [], "mse": []}
        for step in reversed(range(self.num_timesteps)):
            t = torch.full(x_start.shape[:1], step, dtype=torch.int64, device=x_start.device)
            c = self._lookup("x_start", x_start, t)
            noise = self._noise(c, x_start, None, generator)
            x_t = self._diffuse(c, x_start, noise).to(x_start.dtype)
            terms = self.vlb_terms(model, x_start, x_t, t, clip_denoised, model_kwargs)
            eps = self._eps(c, x_t, terms["pred_xstart"])
            columns["vb"].append(terms["vb"])
            columns["xstart_mse"].append(((terms["pred_xstart"] - x_start) ** 2).flatten(1).mean(1))
            columns["mse"].append(((eps - noise) ** 2).flatten(1).mean(1))
        prior = self.prior_bpd(x_start)
        stacked = {name: torch.stack(column, dim=1) for name, column in columns.items()}
        return {"total_bpd": prior + stacked["vb"].sum(1), "prior_bpd": prior, **stacked}

    def _vb_bits(self, c: Coefficients, x_start: Tensor, x_t: Tensor, t: Tensor, p: Reverse) -> Tensor:
        true_mean = c.posterior_x0 * x_start + c.posterior_xt * x_t
        kl = normal_kl(true_mean, c.posterior_log_variance, p.mean, p.log_variance)
        nll = discretized_gaussian_nll(x_start.to(p.mean.dtype), p.mean, p.log_variance)
        return bits_per_dim(torch.where((t == 0).view_as(c.log_beta), nll, kl))
