# SPDX-License-Identifier: Apache-2.0
"""Flow matching along straight paths, with SiT's conventions (arXiv 2401.08740; arXiv 2209.03003, 2210.02747).

x_t = t x_1 + (1 - t) x_0 with noise x_0 ~ N(0, 1) at t = 0 and data x_1 at t = 1. The model predicts the
velocity v = x_1 - x_0; the ordinary differential equation dx/dt = v(x, t) takes noise to data.

LEGEND: N batch, C channels, H height, W width; x is (N,C,H,W), or any (N,C,...). t is floating point (N,) in
[0, 1]; the model is given t as it is, not scaled to 1000. Arithmetic is in float32, or float64 where x is
float64. A step makes no host copy and no synchronisation, so it can be captured in a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

from dit_fast.diffusion.checks import Model, check_image, check_like, check_output, check_times, draw_noise
from dit_fast.diffusion.loops import Device, last_sample, start_noise, with_bar
from dit_fast.diffusion.process import ModelKwargs

Times = Literal["uniform", "logit_normal"]
Method = Literal["euler", "heun"]


def create_flow(times: Times = "uniform") -> Flow:
    """Make the flow that a SiT is trained and sampled with.

    times: how training draws t: "uniform" in [0, 1), SiT's; or "logit_normal", the logistic function of
        N(0, 1), which favours the middle (SD3, arXiv 2403.03206, section 3.1).

    Raises ValueError for other `times`.
    """
    return Flow(times)


class Flow:
    """A straight path between noise and data; made by `create_flow`.

    Arguments shared by all methods:
        model: called as model(x, t, **model_kwargs), x (N,C,H,W) in its own dtype, t (N,) float32 (float64 for
            float64 x). Returns the velocity (N,C,H,W) in any floating dtype; of (N,2C,H,W), as a model with
            learn_sigma has, the first C channels are it. For guidance give `with_guidance(model, ...)`.
        model_kwargs: keyword arguments for model.
        generator: source of all chance, on the device of x.
    Errors: ValueError that names the argument, or `model` for an output of another shape.
    """

    def __init__(self, times: Times) -> None:
        if times not in ("uniform", "logit_normal"):
            raise ValueError(f"times: expected 'uniform' or 'logit_normal', came {times!r}")
        self.times = times

    def draw_times(
        self, n: int, *, device: torch.device | str = "cpu", generator: torch.Generator | None = None
    ) -> Tensor:
        """The times that a batch of n is trained at: float32 (n,)."""
        if self.times == "uniform":
            return torch.rand(n, dtype=torch.float32, device=device, generator=generator)
        return torch.randn(n, dtype=torch.float32, device=device, generator=generator).sigmoid()

    def interpolate(
        self,
        x_start: Tensor,
        t: Tensor,
        noise: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """x_t = t x_start + (1 - t) noise: (N,C,H,W) in x_start's dtype; noise is drawn where None."""
        return self._path(x_start, t, noise, generator)[0]

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
        """Squared error of the velocity (SiT eq. 7).

        x_start: data, floating point (N,C,H,W); t: (N,), see `draw_times`; noise: like x_start, drawn where
        None. Returns `loss` (N,), a mean over all but the batch, float32 (float64 for float64 x_start).
        """
        x_t, target = self._path(x_start, t, noise, generator)
        velocity = self.velocity(model, x_t, t, model_kwargs)
        return {"loss": ((velocity - target) ** 2).flatten(1).mean(1)}

    def velocity(self, model: Model, x: Tensor, t: Tensor, model_kwargs: ModelKwargs | None = None) -> Tensor:
        """The model's velocity at (x, t): (N,C,H,W), float32 or float64."""
        check_image("x", x)
        check_times("t", t, x)
        dtype = torch.promote_types(x.dtype, torch.float32)
        out = model(x, t.to(dtype), **(model_kwargs or {}))
        doubled = isinstance(out, Tensor) and out.dim() == x.dim() and out.shape[1] == 2 * x.shape[1]
        return check_output(out, x, learn_sigma=doubled)[:, : x.shape[1]].to(dtype)

    def flow_step(
        self,
        model: Model,
        x: Tensor,
        t: Tensor,
        t_next: Tensor,
        method: Method = "euler",
        model_kwargs: ModelKwargs | None = None,
    ) -> dict[str, Tensor]:
        """Go from t to t_next, both (N,), in either direction, along the ODE.

        "euler": one evaluation of the model, first order. "heun": two, second order (the trapezoid rule with
        Euler's step as its predictor). Returns `sample` (N,C,H,W) at t_next and `pred_xstart`, the data x_1
        that the velocity at t points to, x + (1 - t) v; both in x's dtype.
        """
        _check_method(method)
        check_times("t_next", t_next, x)
        velocity = self.velocity(model, x, t, model_kwargs)
        from_t, step = _spread(t, velocity), _spread(t_next, velocity) - _spread(t, velocity)
        sample, mean = x + step * velocity, velocity
        if method == "heun":
            mean = (velocity + self.velocity(model, sample.to(x.dtype), t_next, model_kwargs)) / 2
            sample = x + step * mean
        pred_xstart = x + (1 - from_t) * velocity
        return {"sample": sample.to(x.dtype), "pred_xstart": pred_xstart.to(x.dtype)}

    def ode_sample_loop(
        self,
        model: Model,
        shape: Sequence[int],
        noise: Tensor | None = None,
        steps: int = 50,
        method: Method = "euler",
        model_kwargs: ModelKwargs | None = None,
        device: Device = None,
        progress: bool = False,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """From noise at t = 0 to data at t = 1 in equal steps, without gradients: `shape` in noise's dtype.

        noise: x_0 of that shape; drawn on `device` where None (default: the device of model's parameters, or
        torch's default device where it has none). The state is kept in its dtype, so give float32 and let the
        model cast. progress: show tqdm's bar.
        """
        return last_sample(
            self.ode_sample_loop_progressive(
                model, shape, noise, steps, method, model_kwargs, device, progress, generator=generator
            )
        )

    def ode_sample_loop_progressive(
        self,
        model: Model,
        shape: Sequence[int],
        noise: Tensor | None = None,
        steps: int = 50,
        method: Method = "euler",
        model_kwargs: ModelKwargs | None = None,
        device: Device = None,
        progress: bool = False,
        *,
        generator: torch.Generator | None = None,
    ) -> Iterator[dict[str, Tensor]]:
        """`ode_sample_loop`, yielding flow_step's dict after every step; a replaced `sample` is kept."""
        _check_method(method)
        x = start_noise(model, shape, noise, device, generator)
        times = self.step_times(steps, x.device, torch.promote_types(x.dtype, torch.float32))
        for i in with_bar(range(steps), progress):
            t, t_next = times[i].expand(x.shape[:1]), times[i + 1].expand(x.shape[:1])
            with torch.no_grad():  # around the step only: what the caller does between steps is the caller's
                out = self.flow_step(model, x, t, t_next, method, model_kwargs)
            yield out
            x = out["sample"]

    @staticmethod
    def step_times(
        steps: int, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """The times that `steps` equal steps go through, 0 and 1 included: (steps + 1,)."""
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
            raise ValueError(f"steps: expected an int >= 1, came {steps!r}")
        return (torch.arange(steps + 1, dtype=torch.float64, device="cpu") / steps).to(dtype).to(device)

    def _path(
        self, x_start: Tensor, t: Tensor, noise: Tensor | None, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        """x_t in x_start's dtype, and the velocity x_1 - x_0 in float32 or float64."""
        check_image("x_start", x_start)
        check_times("t", t, x_start)
        dtype = torch.promote_types(x_start.dtype, torch.float32)
        if noise is None:
            noise = draw_noise(x_start, dtype, generator)
        check_like("noise", noise, "x_start", x_start)
        data, noise = x_start.to(dtype), noise.to(dtype)
        weight = _spread(t, data)
        return (weight * data + (1 - weight) * noise).to(x_start.dtype), data - noise


def _check_method(method: str) -> None:
    if method not in ("euler", "heun"):
        raise ValueError(f"method: expected 'euler' or 'heun', came {method!r}")


def _spread(t: Tensor, like: Tensor) -> Tensor:
    """(N,) -> (N,1,...,1) in like's dtype, to multiply like (N,...)."""
    return t.to(like.dtype).view((-1,) + (1,) * (like.dim() - 1))
