# SPDX-License-Identifier: Apache-2.0
"""What a batch of one shape is sampled in: buffers whose addresses stay, and a step that works on them only.

So every step of every batch is the same work, which a CUDA graph records once and replays. Without a GPU the same
functions run as they are. N batch, C channels, H W image, M times.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dit_fast.diffusion import guide
from dit_fast.diffusion.guidance import CfgChannels
from dit_fast.models import DiT

from . import noise
from .chains import Chain
from .modulations import ModulationTable

WARM_UP = 2
"""Runs before a capture: kernels are loaded and libraries allocate their workspaces in the first."""

NOISE_BYTES = 1 << 28
"""Of noise drawn ahead of the steps that add it."""


class Denoiser(NamedTuple):
    """The model and how it is called."""

    model: Callable[..., Tensor]
    parts: DiT | None
    """The model, where it is called in parts: needed for both of the next."""
    cached: bool
    """Modulations come from a table."""
    shared: bool
    """The halves of a guided batch share the patch embedding."""
    conditional: bool
    null: int
    dtype: torch.dtype
    cfg_scale: float
    cfg_channels: CfgChannels


class Plan:
    """The buffers, the step and its graphs.

    Args:
        denoiser: the model.
        table: where its modulations are, if they are cached; plans share it.
        chain: the steps; None where someone else steps, and only the model is run here.
        times: (M,) what the model is told, on the model's device.
        shape: (N, C, H, W).
        out_channels: of the model.
        guided: whether any step is.
        capture: record steps in CUDA graphs.
    """

    def __init__(
        self, denoiser: Denoiser, table: ModulationTable | None, chain: Chain | None, times: Tensor,
        shape: tuple[int, ...], out_channels: int, guided: bool, capture: bool,
    ) -> None:  # fmt: skip
        self.denoiser, self.table, self.chain, self.times, self.capture = denoiser, table, chain, times, capture
        device, n = times.device, shape[0]
        dtype = torch.promote_types(denoiser.dtype, torch.float32)
        self.x = torch.zeros(shape, dtype=dtype, device=device)
        self.step = torch.zeros(1, dtype=torch.int64, device=device)
        self.y = torch.zeros((2 if guided else 1) * n, dtype=torch.int64, device=device)
        self.out_shape = out_channels, *shape[2:]
        self.out = None if chain else torch.zeros((n, *self.out_shape), dtype=dtype, device=device)
        self.noise: Tensor | None = None
        if chain and chain.draws_noise:
            ahead = min(chain.steps, max(1, NOISE_BYTES // (4 * self.x.numel())))
            self.noise = torch.zeros((ahead, *shape), device=device)  # float32, of any model: the same numbers
        self.noise_start = torch.zeros(1, dtype=torch.int64, device=device)
        self.places = torch.zeros_like(self.y)
        self.rows = None if table is None else table.rows
        self.positions: Tensor | None = None
        if denoiser.parts is not None:
            p = denoiser.parts.patch_size
            self.grid = shape[2] // p, shape[3] // p
            self.positions = denoiser.parts.positions(self.grid)
        self.graphs: dict[tuple[bool, ...], Any] = {}

    def start(self, labels: list[int], held: list[int], generators: list[torch.Generator]) -> None:
        """A new batch: its labels, those to hold modulations of, and fresh noise in x."""
        both = labels + [self.denoiser.null] * (len(self.y) - len(labels))
        self.y.copy_(torch.tensor(both))
        if self.table is not None:
            self.places.copy_(self.table.choose(held, both))
        self.generators = generators
        self.step.zero_()
        fresh = torch.empty_like(self.x, dtype=torch.float32)
        noise.draw(generators, fresh)
        self.x.copy_(fresh)

    def prepare(self, variants: set[tuple[bool, ...]]) -> None:
        """Before a batch: a graph for each way in which steps are guided, unless it is there. x is spoiled."""
        if self.table is not None and self.rows is not self.table.rows:
            self.rows = self.table.rows
            self.graphs.clear()  # they read another buffer
        if self.capture:
            with torch.cuda.device_of(self.x):
                for guided in sorted(variants - self.graphs.keys()):
                    self.graphs[guided] = self._captured(partial(self._work, guided))

    def ahead(self, first: int, steps: int) -> int:
        """Compute and draw what the steps from `first` on need, as far as there is room; returns where that ends."""
        last = steps
        if self.noise is not None:
            last = min(last, first + len(self.noise))
        if self.table is not None and self.table.steps() >= steps:
            self.table.fill(0, steps)  # once for all batches with these labels
        elif self.table is not None:
            last = min(last, first + self.table.steps())
            self.table.fill(first, last)
        if self.noise is not None:
            for row in self.noise[: last - first]:
                noise.draw(self.generators, row)
            self.noise_start.fill_(first)
        return last

    def run(self, guided: tuple[bool, ...]) -> None:
        """The next step; `guided` says of each of its evaluations of the model whether it is."""
        if self.capture:
            self.graphs[guided].replay()
        else:
            self._work(guided)

    def _work(self, guided: tuple[bool, ...]) -> None:
        if self.chain is None:
            assert self.out is not None
            self.out.copy_(self._evaluate(self.x, 0, guided[0]))
        else:
            fresh = None
            if self.noise is not None:
                fresh = self.noise.index_select(0, self.step - self.noise_start)[0]
            evaluate = tuple(partial(self._evaluate, ahead=k, guided=own) for k, own in enumerate(guided))
            self.x.copy_(self.chain.step(evaluate, self.x, self.step, self.times, fresh))
        self.step.add_(1)

    def _evaluate(self, x: Tensor, ahead: int, guided: bool) -> Tensor:
        """The model's output for x (N, C, H, W), `ahead` times past this step's: (N, C or 2C, H, W) in x's dtype."""
        own, n, rows = self.denoiser, len(x), len(x) * (2 if guided else 1)
        time = self.step + ahead if ahead else self.step
        out = self._call(x.to(own.dtype), time, rows).to(x.dtype)
        if not guided:
            return out
        return guide(out, own.cfg_scale, own.cfg_channels, in_channels=x.shape[1])[:n]

    def _call(self, x: Tensor, time: Tensor, rows: int) -> Tensor:
        """The model's output for as many rows, repeating x: (rows, C or 2C, H, W)."""
        own, times = self.denoiser, rows // len(x)
        y = self.y[:rows] if own.conditional else None
        if not own.shared:
            x = _repeated(x, times)
        if own.parts is None:
            t = self.times.index_select(0, time).expand(rows)
            out = own.model(x, t) if y is None else own.model(x, t, y)
            if not isinstance(out, Tensor) or out.shape != (rows, *self.out_shape):
                got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
                raise ValueError(f"Sampler: `model` must return a tensor {(rows, *self.out_shape)}, got {got}")
            return out
        tokens = own.parts.embed(x, self.positions)
        if own.shared:
            tokens = _repeated(tokens, times)
        if self.table is not None:
            conditioning = own.parts.condition_of(self.table.at(time, self.places[:rows]))
        else:
            conditioning = own.parts.condition(self.times.index_select(0, time).expand(rows), y)
        return own.parts.denoise(tokens, conditioning, self.grid)

    def _captured(self, work: Callable[[], None]) -> Any:
        """A graph of `work`."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            self._warm_up(work)
        torch.cuda.current_stream().wait_stream(side)
        graph, pool = torch.cuda.CUDAGraph(), next(iter(self.graphs.values())).pool() if self.graphs else None
        # thread_local: another thread, that of a data loader say, may allocate meanwhile
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            work()
        return graph

    def _warm_up(self, work: Callable[[], None]) -> None:
        for _ in range(WARM_UP):
            self._rewind()
            work()
        self._rewind()

    def _rewind(self) -> None:
        """Indices that are right in every buffer, whatever it holds."""
        for index in (self.step, self.noise_start, self.places):
            index.zero_()
        if self.table is not None:
            self.table.rewind()


def _repeated(x: Tensor, times: int) -> Tensor:
    return x if times == 1 else x.repeat(times, *(1 for _ in x.shape[1:]))
