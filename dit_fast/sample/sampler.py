# SPDX-License-Identifier: Apache-2.0
"""Images from a trained model. N batch, C channels, H W image, S steps."""

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from dit_fast.diffusion.guidance import CfgChannels
from dit_fast.diffusion.loops import with_bar

from .chains import Chain, DiffusionChain, FlowChain
from .labels import Labels, class_ids
from .modulations import ModulationTable
from .noise import streams
from .plan import Denoiser, Plan
from .schedulers import SchedulerChain
from .surface import Surface, stamp, surface_of, why_uncaptured, why_whole

log = logging.getLogger("dit_fast")

PLANS = 2
"""Kept with their buffers and graphs: that of full batches, and that of the rest."""


class Sampler:
    """Draws images from a model, as fast as is exact.

    Args:
        model: a DiT in evaluation mode, or any callable model(x, t, y) (model(x, t) if it has no labels): x
            (N, C, H, W) in `dtype`, t (N,), y (N,) int64; it returns (N, C or 2C, H, W). It is not changed. Weights
            that are written in place or replaced between calls are seen.
        method: "ddpm" (ancestral) or "ddim" for models of noise, "euler" or "heun" for models of flow, or any scheduler
            object of diffusers for either (`SchedulerChain` says how).
        steps: of the method; of "ddpm" and "ddim" also a spacing such as "ddim50" (see `space_timesteps`).
        noise_schedule: that "ddpm" and "ddim" models were trained with; see `create_diffusion`.
        eta: of DDIM's noise, 0 (none) to 1; of a scheduler that takes one too.
        cfg_scale: classifier-free guidance; 1 samples without, at half the cost.
        cfg_interval: lowest and highest timestep of the chain of 1000 that are guided (arXiv 2404.07724); steps outside
            cost half. Of flows and schedulers, the noise level in thousandths.
        cfg_channels: how many channels are guided, or "all"; see `dit_fast.diffusion.guide`.
        clip_denoised: keep each prediction of the clean image in [-1, 1]: for pixels, not for latents. "ddpm", "ddim".
        class_names: in the order of the ids, so that labels may be names.
        modulation_cache: shift, scale and gate of all blocks are computed for all steps and the labels asked for before
            the steps, so that these do not read the weights that regress them. None: where the model allows it.
        cache_bytes: at most as much memory for that; where all steps do not fit, it is done for some at a time.
        shared_patch_embedding: both halves of a guided batch are embedded once. None: where the model allows it.
        cuda_graph: the work of a step is recorded once and replayed. None: for a DiT on a GPU.
        dtype, device, in_channels, num_classes, learn_sigma: of the model, where its attributes do not say.

    The accelerations change nothing but the order of roundings. One that was left at None and cannot apply is off, and
    the logger `dit_fast` says why; one that was asked for raises.

    Raises:
        ValueError: names the argument, what was expected and what came.

    >>> sampler = Sampler(model, steps=50, cfg_scale=4.0)
    >>> latents = sampler([207, 360])
    """

    def __init__(
        self,
        model: Callable[..., Tensor],
        *,
        method: Literal["ddpm", "ddim", "euler", "heun"] | Any = "ddpm",
        steps: int | str = 250,
        noise_schedule: str = "linear",
        eta: float = 0.0,
        cfg_scale: float = 1.0,
        cfg_interval: tuple[float, float] | None = None,
        cfg_channels: CfgChannels = 3,
        clip_denoised: bool = False,
        class_names: Sequence[str] | None = None,
        modulation_cache: bool | None = None,
        cache_bytes: int = 1 << 30,
        shared_patch_embedding: bool | None = None,
        cuda_graph: bool | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        in_channels: int | None = None,
        num_classes: int | None = None,
        learn_sigma: bool | None = None,
    ) -> None:
        self.model = model
        self.cfg_scale = float(cfg_scale)
        self.cfg_channels: CfgChannels = cfg_channels
        self.class_names = class_names
        self.cache_bytes = cache_bytes
        self._asked = {
            "modulation_cache": modulation_cache, "shared_patch_embedding": shared_patch_embedding,
            "cuda_graph": cuda_graph,
        }  # fmt: skip
        self._given = dict(
            dtype=dtype, device=device, in_channels=in_channels, num_classes=num_classes, learn_sigma=learn_sigma
        )
        self._said: set[str] = set()
        self._plans: dict[Any, Plan] = {}
        self._table: ModulationTable | None = None
        self._stamp: Any = None
        surface = self._surface()
        self._chain = _chain(method, steps, noise_schedule, eta, clip_denoised, surface)
        self._guided = self._variants(cfg_interval)
        self._denoiser(surface)  # so that what cannot be is said now

    @torch.inference_mode(False)  # else buffers made in a caller's inference mode could not be written outside of it
    @torch.no_grad()
    def __call__(
        self,
        labels: Labels,
        *,
        seeds: Sequence[int] | None = None,
        seed: int = 0,
        size: int | tuple[int, int] | None = None,
        batch_size: int = 32,
        progress: bool = False,
    ) -> Tensor:
        """Draw one image a label.

        Args:
            labels: ids or names of classes, a list or a tensor; of a model without labels how many images.
            seeds: the number of each image, 0, 1, 2 ... where None. All noise of image k is a function of (seed, k): it
                is the same, to the bit, in any batch, order and process. (The model rounds otherwise in a batch of
                another size, so images agree to rounding.)
            size: H and W, where they are not the model's own.
            batch_size: so many images at a time.
            progress: show tqdm's bar.

        Returns:
            (N, C, H, W) on the model's device, in float32 (float64 of a float64 model).
        """
        surface = self._surface()
        ids = class_ids(labels, surface.num_classes, self.class_names)
        numbers = range(len(ids)) if seeds is None else [int(k) for k in seeds]
        if len(numbers) != len(ids):
            raise ValueError(f"Sampler: `seeds` must hold one number an image, {len(ids)}, got {len(numbers)}")
        if batch_size < 1:
            raise ValueError(f"Sampler: `batch_size` must be 1 or more, got {batch_size}")
        shape = surface.in_channels, *self._size(surface, size)
        self._renew(surface)
        null = [surface.num_classes] if self._is_guided() else []
        distinct = sorted({*ids, *null})
        starts = range(0, len(ids), batch_size)
        bar = iter(with_bar(range(len(starts) * len(self._guided)), progress))
        images = []
        for at in starts:
            own = ids[at : at + batch_size]
            plan = self._plan(surface, (len(own), *shape))
            held, table = distinct, plan.table
            if table is not None:
                table.reserve(min(len(own), max(1, surface.num_classes)) + len(null), len(distinct))
                if not table.holds_all(len(distinct)):
                    held = sorted({*own, *null})
            plan.prepare({*self._guided})
            plan.start(own, held, streams(seed, numbers[at : at + batch_size], surface.device))
            images.append(self._run(plan, bar))
        next(bar, None)  # closes it
        return torch.cat(images) if images else torch.zeros(0, *shape, device=surface.device)

    def clear(self) -> None:
        """Give back the buffers and graphs that are kept for the next call."""
        self._plans.clear()
        self._table = None

    def _run(self, plan: Plan, bar: Iterator[int]) -> Tensor:
        """All steps of a batch; on a GPU they are queued, and nothing waits for them."""
        chain = self._chain
        x, ready = plan.x, 0
        if isinstance(chain, SchedulerChain):
            chain.restart()
            x = chain.begin(x)
        for i, guided in enumerate(self._guided):
            if i == ready:
                ready = plan.ahead(i, len(self._guided))
            if isinstance(chain, SchedulerChain):
                plan.x.copy_(chain.scaled(x, i))
                plan.run(guided)
                assert plan.out is not None
                x = chain.step(plan.out.clone(), i, x, plan.generators)  # schedulers keep outputs of earlier steps
            else:
                plan.run(guided)
            next(bar)
        return x.clone()

    def _surface(self) -> Surface:
        return surface_of(self.model, **self._given)

    def _size(self, surface: Surface, size: int | tuple[int, int] | None) -> tuple[int, int]:
        if size is None and surface.size is None:
            raise ValueError("Sampler: `size` must be given: the model does not say what it was made for")
        size = surface.size if size is None else size
        assert size is not None
        return (size, size) if isinstance(size, int) else (size[0], size[1])

    def _is_guided(self) -> bool:
        return any(any(guided) for guided in self._guided)

    def _variants(self, interval: tuple[float, float] | None) -> list[tuple[bool, ...]]:
        """For each step, whether each of its evaluations of the model is guided."""
        chain = self._chain
        guided = [self.cfg_scale != 1] * len(chain.levels)
        if interval is not None:
            low, high = interval
            if not 0 <= low <= high <= 1000:
                raise ValueError(f"Sampler: `cfg_interval` must be (low, high) within 0 to 1000, got {interval}")
            guided = [self.cfg_scale != 1 and low <= round(level, 3) <= high for level in chain.levels]
        return [tuple(guided[i : i + chain.evaluations]) for i in range(chain.steps)]

    def _denoiser(self, surface: Surface) -> Denoiser:
        if self.cfg_scale != 1 and surface.num_classes == 0:
            raise ValueError("Sampler: `cfg_scale` must be 1: the model has no labels")
        if self.cfg_scale != 1 and not surface.has_null:
            raise ValueError("Sampler: `cfg_scale` must be 1: the model has no null label to guide away from")
        whole = why_whole(self.model)
        cached = self._decide("modulation_cache", whole)
        shared = self._decide("shared_patch_embedding", whole)
        return Denoiser(
            model=self.model,
            parts=self.model if cached or shared else None,  # type: ignore[arg-type]
            cached=cached,
            shared=shared,
            conditional=surface.num_classes > 0,
            null=surface.num_classes,
            dtype=surface.dtype,
            cfg_scale=self.cfg_scale,
            cfg_channels=self.cfg_channels,
        )

    def _decide(self, name: str, reason: str | None) -> bool:
        """Whether an acceleration is on: as asked for, or wherever nothing speaks against it."""
        asked = self._asked[name]
        if asked is False or reason is None:
            return asked is not False
        if asked:
            raise ValueError(f"Sampler: `{name}` must be False or None: {reason}")
        if name not in self._said:
            self._said.add(name)
            log.info("sampling without %s: %s", name, reason)
        return False

    def _plan(self, surface: Surface, shape: tuple[int, ...]) -> Plan:
        """The plan for batches of this shape, kept or new."""
        capture = self._decide("cuda_graph", why_uncaptured(self.model, surface.device, self._asked["cuda_graph"]))
        key = shape, capture
        plan = self._plans.pop(key, None)
        if plan is None:
            while len(self._plans) >= PLANS:
                del self._plans[next(iter(self._plans))]
            denoiser, chain = self._denoiser(surface), self._chain
            times = chain.times.to(surface.device)
            if denoiser.cached and self._table is None:
                assert denoiser.parts is not None
                self._table = ModulationTable(denoiser.parts, times, self.cache_bytes, chain.evaluations - 1)
            plan = Plan(
                denoiser, self._table, None if isinstance(chain, SchedulerChain) else chain, times, shape,
                surface.out_channels, self._is_guided(), capture,
            )  # fmt: skip
        self._plans[key] = plan  # the latest last
        return plan

    def _renew(self, surface: Surface) -> None:
        """Before a call: what depends on the weights is computed anew, and graphs that do not hold are dropped."""
        now = stamp(self.model, surface.device), surface, self._denoiser(surface)
        if now != self._stamp:
            self.clear()
            self._stamp = now
        if self._table is not None:
            self._table.forget()


def _chain(
    method: Any, steps: int | str, noise_schedule: str, eta: float, clip_denoised: bool, surface: Surface
) -> Chain | SchedulerChain:
    if method in ("ddpm", "ddim"):
        if not 0 <= eta <= 1 or (eta and method == "ddpm"):
            raise ValueError(f"Sampler: `eta` must be 0 to 1 for 'ddim' and 0 for {method!r}, got {eta}")
        learn_sigma = surface.out_channels == 2 * surface.in_channels
        return DiffusionChain(steps, noise_schedule, learn_sigma, clip_denoised, method == "ddim", eta)
    if noise_schedule != "linear":
        raise ValueError(
            f"Sampler: `noise_schedule` is for 'ddpm' and 'ddim': a scheduler has its own, got {noise_schedule!r}"
        )
    if clip_denoised:
        raise ValueError("Sampler: `clip_denoised` is for 'ddpm' and 'ddim'; a scheduler has `clip_sample` instead")
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
        raise ValueError(f"Sampler: `steps` must be a number of 1 or more for this method, got {steps!r}")
    if method in ("euler", "heun"):
        if eta:
            raise ValueError(f"Sampler: `eta` must be 0 for {method!r}, got {eta}")
        return FlowChain(steps, method)
    return SchedulerChain(method, steps, surface.in_channels, eta)


def sample(
    model: Callable[..., Tensor],
    labels: Labels,
    *,
    steps: int | str = 250,
    cfg_scale: float = 1.0,
    cfg_channels: CfgChannels = 3,
    sampler: Any = "ddpm",
    clip_denoised: bool = False,
    seed: int = 0,
    batch_size: int = 256,
    progress: bool = False,
) -> Tensor:
    """Draw one image a label: a `Sampler` with these options, used once. (N, C, H, W) float32."""
    own = Sampler(
        model, method=sampler, steps=steps, cfg_scale=cfg_scale, cfg_channels=cfg_channels, clip_denoised=clip_denoised
    )
    return own(labels, seed=seed, batch_size=batch_size, progress=progress)
