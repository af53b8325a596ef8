# SPDX-License-Identifier: Apache-2.0
"""The training loop. N images of this rank, B of all ranks, C channels, H W image."""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from dit_fast.data import Source, open_source
from dit_fast.models import DiT, DiT_models
from dit_fast.models.macs import count_macs
from dit_fast.optim import AdamWEMA

from . import checkpoint, failure
from .config import TrainConfig
from .distributed import Ranks, Spread, connect
from .failure import Batch
from .interrupt import Interrupt
from .loader import Order, batches
from .metrics import peak_tflops
from .objective import Draws, draw, lr_factor, make_objective, stream
from .progress import Progress
from .watch import RunInfo, Watcher, watchers_for

LOG = logging.getLogger("dit_fast")

Draw = Callable[[DiT, Tensor | None, TrainConfig], Tensor]
"""Images (N, C, H, W) in [-1, 1] of labels (N,), drawn by a model with averaged weights in evaluation mode."""


@dataclass
class TrainResult:
    """What a run comes to.

    Attributes:
        ema: the averaged model in evaluation mode, whole on every rank.
        losses: of each step of this process's part of the run, over all ranks.
        steps: how many steps the weights have had, those before a resume too.
        seconds, images_per_second: of this process's part.
        reason: "done", or "stopped" by SIGTERM.
    """

    ema: DiT
    losses: list[float]
    steps: int
    seconds: float
    images_per_second: float
    reason: str


class Trainer:
    """A run: `Trainer(config).run()`, in one process or in each of those that `torchrun` started.

    Args:
        config: what to train, and how.
        source: the images; None opens `config.data`.
        watchers: told what happens, on rank 0; None takes those that `config` asks for.
        model: starts from its weights, and trains it in place; None makes `config.model`, drawn from `config.seed`.
        draw: draws images each `config.sample_every` steps, on rank 0; None draws none. Give it to every rank.
        device: None takes this process's GPU where there is one.

    Raises:
        ValueError: names the argument or field that does not fit, with what was expected and what came.
    """

    def __init__(
        self,
        config: TrainConfig,
        source: Source | None = None,
        watchers: Sequence[Watcher] | None = None,
        model: DiT | None = None,
        draw: Draw | None = None,
        device: str | torch.device | None = None,
    ) -> None:
        self.config = config
        self.ranks = connect(device)
        self.source = open_data(config) if source is None else source
        self.images = rows_of_rank(config, self.ranks.world)
        self.order = Order(len(self.source), config.batch_size, config.seed)
        self.model = _prepare(build_model(config, self.source) if model is None else model, config, self.ranks.device)
        _check(self.model, self.source)
        self.objective = make_objective(config, self.model)
        self.spread = Spread(self.model, config, self.ranks)
        self.optimizer = AdamWEMA(
            self.model.named_parameters(), config.lr, config.betas, weight_decay=config.weight_decay,
            ema_decay=config.ema, max_grad_norm=config.max_grad_norm or math.inf,
            master_weights=config.precision == "pure_bf16",
        )  # fmt: skip
        self.optimizer.init_states()
        self.draw_images = draw
        self.watchers = list(watchers_for(config) if watchers is None else watchers) if self.ranks.first else []
        self.out = Path(config.out)
        self.step = 0
        self._batch: Batch | None = None

    def run(self) -> TrainResult:
        """Train to `config.steps`, or to a SIGTERM.

        Raises:
            FloatingPointError: the loss of a step is not finite: its update is not made. Or its gradient alone is not:
                that shows a step later, and no checkpoint is made in between. `failed-step-N` in `config.out` holds
                the batch and the weights as they are.
            ValueError: the checkpoint to resume from does not fit, or is not whole.
        """
        config, ranks = self.config, self.ranks
        torch.manual_seed(stream(config.seed, "rank", ranks.rank))  # of whatever draws from torch's own generator
        seconds = checkpoint.resume(self)
        info = RunInfo(
            config, sum(p.numel() for p in self.model.parameters()), count_macs(self.model, *self.source.shape[1:]),
            ranks.world, _name(ranks.device), self.step, self.out, peak_tflops(config, ranks.device),
        )  # fmt: skip
        progress = Progress(info, self.watchers, seconds)
        first = ranks.rank * self.images
        rows = slice(first, first + self.images)
        data = batches(
            self.source, self.order, rows, range(self.step, config.steps), config.workers, ranks.device
        )
        self.model.train()
        if self.model.y_embedder is not None:
            self.model.y_embedder.eval()  # labels are dropped here, by (seed, step)
        reason = "done"
        try:
            with Interrupt() as interrupt, _tf32(config.tf32):
                while self.step < config.steps and reason == "done":
                    x, y = next(data)
                    loss, stop = self._step(x, y, interrupt.came)
                    progress.step(loss)
                    reason = "stopped" if stop else reason
                    self._after(progress, last=stop or self.step == config.steps)
        except BaseException as error:
            progress.end(f"{type(error).__name__}: {error}")
            raise
        progress.end(reason)
        result = self._result(progress, reason)
        ranks.leave()
        return result

    def _step(self, x: Tensor, y: Tensor, stop: bool) -> tuple[float, bool]:
        """One update from this rank's rows x (N, C, H, W), y (N,): the loss over all ranks; whether any rank stops."""
        config, ranks = self.config, self.ranks
        factor = lr_factor(self.step, config)
        for group in self.optimizer.param_groups:
            group["lr"] = config.lr * factor
        draws = self.draws(x)
        y = self.labels(y, draws)
        micro = self.images // config.accumulate
        losses: list[Tensor] = []
        for first in range(0, self.images, micro):
            part = slice(first, first + micro)
            last = first + micro == self.images
            with self.spread.micro_batch(last):
                loss = self._losses(x[part], y[part], draws.rows(part))  # (N / accumulate,)
                losses.append(loss.detach())
                if last:
                    told = _Told(torch.cat(losses), self.optimizer.grad_norm, stop, ranks)
                (loss.mean() / config.accumulate).backward()
        mean, norm, stopping = told.wait()  # of the forward: the GPU is in the backward, and does not wait for us
        self._check_gradient(norm)
        self._batch = Batch(self.step, x, y, draws, torch.cat(losses))
        if not math.isfinite(mean):
            failure.stop(self, self._batch, f"the loss of step {self.step} is {mean}")
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return mean, stopping

    def _check_gradient(self, norm: float) -> None:
        """Stop where the last update was made with a gradient that is not finite."""
        if not math.isfinite(norm):
            assert self._batch is not None
            what = f"the gradient of step {self._batch.step} is {norm}, and its update is made (not saved)"
            failure.stop(self, self._batch, what)

    def draws(self, x: Tensor) -> Draws:
        """This rank's rows of the step's times, noise and label drops."""
        config, ranks = self.config, self.ranks
        embedder = self.model.y_embedder
        dropout = 0.0 if embedder is None else embedder.dropout_prob
        shape = (config.batch_size, *x.shape[1:])
        first = ranks.rank * self.images
        whole = draw(self.objective, shape, dropout, config.seed, self.step, x.device)
        return whole.rows(slice(first, first + self.images))

    def labels(self, y: Tensor, draws: Draws) -> Tensor:
        """y (N,) with the null label where it is dropped."""
        return torch.where(draws.dropped, self.model.num_classes, y)

    def _losses(self, x: Tensor, y: Tensor, draws: Draws) -> Tensor:
        weight = self.model.x_embedder.proj.weight.dtype
        chain = torch.promote_types(weight, torch.float32)
        low = self.config.precision != "float32"
        given = torch.bfloat16 if low and (self.spread.sharded or weight == torch.bfloat16) else chain
        kind = x.device.type

        def call(x_t: Tensor, t: Tensor, **labels: Tensor) -> Tensor:
            with torch.autocast(kind, torch.bfloat16) if low and given == chain else nullcontext():
                return self.spread.net(x_t.to(given), t, **labels)

        kwargs = {} if self.model.y_embedder is None else {"y": y}
        return self.objective.training_losses(call, x.to(chain), draws.t, kwargs, draws.noise.to(chain))["loss"]

    def _after(self, progress: Progress, last: bool) -> None:
        """What happens between two steps: records, images, checkpoints."""
        config = self.config
        record, samples, save = (
            every > 0 and (last or self.step % every == 0)
            for every in (config.log_every, config.sample_every, config.save_every)
        )
        if not (record or samples or save):
            return
        assert self.optimizer.grad_norm is not None
        norm = self.optimizer.grad_norm.item()  # waits for the GPU
        self._check_gradient(norm)
        if record:
            progress.record(self.step, norm, self.optimizer.param_groups[0]["lr"])
        with progress.aside():
            if save:
                checkpoint.save(self, progress)
            if samples and self.draw_images is not None:
                self._samples(progress)

    def _samples(self, progress: Progress) -> None:
        model = self.averaged()  # every rank takes part in gathering it
        if self.ranks.first and self.draw_images is not None:
            count, classes = self.config.sample_count, model.num_classes
            labels = torch.arange(count, device=self.ranks.device) * classes // count if classes else None
            devices = [self.ranks.device] if self.ranks.device.type == "cuda" else []
            try:
                with torch.random.fork_rng(devices), torch.no_grad():
                    images = self.draw_images(model, labels, self.config)
                pixels = ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1)
            except Exception:  # of the caller's: the run does not depend on it
                LOG.exception("train: no images could be drawn after step %d, training goes on", self.step)
            else:
                progress.samples(self.step, pixels, labels)
        self.ranks.barrier()

    def averaged(self) -> DiT:
        """The model with averaged weights, whole and in evaluation mode; memory may be the optimizer's. Every rank must
        ask for it."""
        with torch.device("meta"):
            copy = type(self.model)(**cast("dict[str, Any]", self.model.config))
        weights = checkpoint.averages(self, self.ranks.device)
        copy.load_state_dict(weights, assign=True)
        return copy.eval()

    def _result(self, progress: Progress, reason: str) -> TrainResult:
        return TrainResult(
            self.averaged(), progress.losses, self.step, progress.seconds, progress.images_per_second, reason
        )


class _Told:
    """The mean loss over all rows of all ranks, the last gradient's norm and whether a rank is to stop, for the host.

    The copy starts behind the forward pass; whoever waits for it after the backward pass was issued waits for nothing.
    """

    def __init__(self, losses: Tensor, norm: Tensor | None, stop: bool, ranks: Ranks) -> None:
        told = torch.tensor([0.0, 0.0, stop], dtype=torch.float64)
        if losses.is_cuda:
            told = told.pin_memory().to(losses.device, non_blocking=True)
        told[0] = losses.double().mean() / ranks.world
        if norm is not None:
            told[1] = norm / ranks.world  # every rank has the same
        ranks.sum_(told)
        self.host = told
        self.event = None
        if losses.is_cuda:
            self.host = torch.empty(3, dtype=torch.float64, pin_memory=True)
            self.host.copy_(told, non_blocking=True)
            self.event = torch.cuda.Event()
            self.event.record()

    def wait(self) -> tuple[float, float, bool]:
        if self.event is not None:
            self.event.synchronize()
        mean, norm, stop = self.host.tolist()
        return mean, norm, stop > 0


def open_data(config: TrainConfig) -> Source:
    """What `config.data` names."""
    return open_source(
        config.data, kind=config.data_kind, image_size=config.image_size, flip=config.flip,
        image_column=config.image_column, label_column=config.label_column, split=config.split,
        num_classes=config.num_classes,
    )  # fmt: skip


def rows_of_rank(config: TrainConfig, world: int) -> int:
    """Images of a batch that each rank takes."""
    if config.batch_size % (world * config.accumulate):
        raise ValueError(
            f"train: `batch_size` must be a multiple of ranks * accumulate, {world} * {config.accumulate}, "
            f"got {config.batch_size}"
        )
    return config.batch_size // world


def build_model(config: TrainConfig, source: Source) -> DiT:
    """The model that `config` asks for, of the data's shape and classes, with weights drawn from `config.seed`."""
    classes = source.num_classes if config.num_classes is None else config.num_classes
    arguments: dict[str, Any] = {
        "input_size": tuple(source.shape[1:]), "in_channels": source.shape[0], "num_classes": classes,
        "class_dropout_prob": config.class_dropout_prob, "learn_sigma": config.objective == "ddpm",
        **config.model_args,
    }  # fmt: skip
    make = DiT if config.model == "DiT" else DiT_models[config.model]
    with torch.random.fork_rng([]):
        torch.manual_seed(config.seed)
        return make(**arguments)


def _prepare(model: DiT, config: TrainConfig, device: torch.device) -> DiT:
    model = model.to(device)
    if config.precision == "pure_bf16":
        model = model.to(torch.bfloat16)
    model.enable_gradient_checkpointing(config.checkpointing)
    return model


def _check(model: DiT, source: Source) -> None:
    if model.in_channels != source.shape[0]:
        raise ValueError(
            f"train: `model` must take the data's {source.shape[0]} channels, got one that takes {model.in_channels}"
        )
    if model.num_classes and not source.num_classes:
        raise ValueError(f"train: `num_classes` must be 0, for the data has no labels, got {model.num_classes}")
    if model.num_classes and model.num_classes < source.num_classes:
        raise ValueError(
            f"train: `num_classes` must be 0 or at least the data's, {source.num_classes}, got {model.num_classes}"
        )


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


@contextmanager
def _tf32(allowed: bool) -> Iterator[None]:
    """Whether float32 products may run as TF32, for a while."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
