# SPDX-License-Identifier: Apache-2.0
"""Any scheduler object of diffusers as a way from noise to an image. It steps on the host, so only the model runs in a
graph. N batch, C channels, H W image."""

import copy
import inspect
from typing import Any

import torch
from torch import Tensor

LEARNED = ("learned", "learned_range")


def scheduler_named(name: str, noise_schedule: str = "linear") -> Any:
    """A scheduler of diffusers by the name of its class, for a model trained with this noise schedule.

    Raises:
        ModuleNotFoundError: diffusers is not installed.
        ValueError: no class of that name.
    """
    try:
        import diffusers
    except ModuleNotFoundError as missing:
        raise ModuleNotFoundError(f"{name} needs diffusers: pip install 'dit_fast[diffusers]'") from missing

    kind = getattr(diffusers, name, None) if name.endswith("Scheduler") else None
    if kind is None:
        raise ValueError(
            "`--sampler` must be ddpm, ddim, euler, heun or the name of a scheduler class of diffusers, such as "
            f"DPMSolverMultistepScheduler, got {name!r}"
        )
    ours = dict(beta_schedule=noise_schedule, beta_start=1e-4, beta_end=0.02, clip_sample=False)
    return kind(**{key: value for key, value in ours.items() if key in inspect.signature(kind).parameters})


class SchedulerChain:
    """A copy of a scheduler, its timesteps and what the model is told at them.

    Schedulers of flows (FlowMatch..., and those with `use_flow_sigmas`) count noise levels down from 1000 and want the
    velocity towards the noise; the model keeps its own convention (`dit_fast.diffusion.flow`) and is translated.

    Raises:
        ValueError: an `eta` that it does not take, a variance that it cannot read, or no such object.
    """

    evaluations = 1

    def __init__(self, scheduler: Any, steps: int, in_channels: int, eta: float) -> None:
        for needed in ("set_timesteps", "step", "config"):
            if not hasattr(scheduler, needed):
                raise ValueError(
                    "Sampler: `method` must be 'ddpm', 'ddim', 'euler', 'heun' or a scheduler of diffusers, got "
                    f"{scheduler!r}"
                )
        self.scheduler = copy.deepcopy(scheduler)
        name, config = type(scheduler).__name__, self.scheduler.config
        self.is_flow = name.startswith("FlowMatch") or bool(config.get("use_flow_sigmas"))
        learned = config.get("variance_type") in LEARNED
        self.takes_variance = learned and "variance_type" in vars(self.scheduler)
        if learned and not self.takes_variance and in_channels > 3:
            raise ValueError(f"Sampler: {name} with a learned variance takes up to 3 channels, got {in_channels}")
        arguments = inspect.signature(self.scheduler.step).parameters
        self.options: dict[str, Any] = {}
        if eta and "eta" not in arguments:
            raise ValueError(f"Sampler: `eta` must be 0: {name} takes none, got {eta}")
        if eta:
            self.options["eta"] = eta
        self.takes_generator = "generator" in arguments
        self.asked = steps
        self.restart()
        trained = config.get("num_train_timesteps", 1000)
        timesteps = self.scheduler.timesteps
        self.steps = len(timesteps)  # of some schedulers more than were asked for
        self.levels = [float(t) * 1000 / trained for t in timesteps]
        self.times = (1 - timesteps.double() / trained).float() if self.is_flow else timesteps.clone()

    def restart(self) -> None:
        """Before a batch. Timesteps stay on the CPU, where schedulers look at their values."""
        self.scheduler.set_timesteps(self.asked, device="cpu")

    def begin(self, noise: Tensor) -> Tensor:
        """The first sample."""
        return noise * float(getattr(self.scheduler, "init_noise_sigma", 1.0))

    def scaled(self, x: Tensor, i: int) -> Tensor:
        """What the model is shown of x at step i."""
        if not hasattr(self.scheduler, "scale_model_input"):
            return x
        return self.scheduler.scale_model_input(x, self.scheduler.timesteps[i])

    def step(self, out: Tensor, i: int, x: Tensor, generators: list[torch.Generator]) -> Tensor:
        """x (N, C, H, W) after step i; out (N, C or 2C, H, W) is the model's."""
        options = {**self.options, **({"generator": generators} if self.takes_generator else {})}
        if not (self.takes_variance and out.shape[1] == 2 * x.shape[1]):
            out = out[:, : x.shape[1]]
        if self.is_flow:
            out = -out
        return self.scheduler.step(out, self.scheduler.timesteps[i], x, return_dict=False, **options)[0]
