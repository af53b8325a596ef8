# SPDX-License-Identifier: Apache-2.0
"""The ways from noise to an image, as steps that run on the device: ancestral DDPM, DDIM, and a flow's ODE.

N batch, M times at which the model is evaluated, S steps. Step i evaluates the model at times[i], and, in a chain that
evaluates twice, at times[i + 1] too. A step makes no host copy and no synchronisation, so a CUDA graph can hold it.
"""

from collections.abc import Callable
from typing import Literal, Protocol

import torch
from torch import Tensor

from dit_fast.diffusion import create_diffusion, create_flow

Evaluate = Callable[[Tensor], Tensor]
"""x (N, C, H, W) float32 -> the model's output for it, float32, guided where that was asked for."""


class Chain(Protocol):
    times: Tensor
    """(M,) on the CPU: what the model is told."""
    levels: list[float]
    """The same as timesteps of the chain of 1000: what a guidance interval's limits are compared with."""
    steps: int
    evaluations: int
    """Of the model in a step: 1 or 2."""
    draws_noise: bool

    def step(
        self, evaluate: tuple[Evaluate, ...], x: Tensor, i: Tensor, times: Tensor, noise: Tensor | None
    ) -> Tensor:
        """x after step i, an int64 (1,) on x's device, as `times` is; `evaluate` holds one function an evaluation."""
        ...


class DiffusionChain:
    """DDPM's ancestral steps, or DDIM's where `ddim` is true, on a respaced chain of 1000."""

    evaluations = 1

    def __init__(
        self, steps: int | str, noise_schedule: str, learn_sigma: bool, clip_denoised: bool, ddim: bool, eta: float
    ) -> None:
        self.diffusion = create_diffusion(str(steps), noise_schedule, learn_sigma)
        self.steps = self.diffusion.num_timesteps
        self.times = torch.tensor(self.diffusion.timestep_map[::-1])
        self.levels = [float(t) for t in self.diffusion.timestep_map[::-1]]
        self.clip_denoised = clip_denoised
        self.ddim, self.eta = ddim, eta
        self.draws_noise = eta > 0 if ddim else True

    def step(
        self, evaluate: tuple[Evaluate, ...], x: Tensor, i: Tensor, times: Tensor, noise: Tensor | None
    ) -> Tensor:
        def model(x: Tensor, t: Tensor) -> Tensor:  # which t, `evaluate` knows
            return evaluate[0](x)

        t = (self.steps - 1 - i).expand(len(x))
        if self.ddim:
            return self.diffusion.ddim_sample(model, x, t, self.clip_denoised, eta=self.eta, noise=noise)["sample"]
        return self.diffusion.p_sample(model, x, t, self.clip_denoised, noise=noise)["sample"]


class FlowChain:
    """Equal steps along a flow's ODE, from noise at t = 0 to data at t = 1."""

    draws_noise = False

    def __init__(self, steps: int, method: Literal["euler", "heun"]) -> None:
        self.flow = create_flow()
        self.method: Literal["euler", "heun"] = method
        self.steps = steps
        self.times = self.flow.step_times(steps)
        self.levels = [1000 * (1 - i / steps) for i in range(steps + 1)]
        self.evaluations = 2 if method == "heun" else 1

    def step(
        self, evaluate: tuple[Evaluate, ...], x: Tensor, i: Tensor, times: Tensor, noise: Tensor | None
    ) -> Tensor:
        in_order = iter(evaluate)

        def model(x: Tensor, t: Tensor) -> Tensor:  # which t, `evaluate` knows
            return next(in_order)(x)

        t, t_next = (times.index_select(0, at).expand(len(x)) for at in (i, i + 1))
        return self.flow.flow_step(model, x, t, t_next, self.method)["sample"]
