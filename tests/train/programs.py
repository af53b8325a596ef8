# SPDX-License-Identifier: Apache-2.0
"""What the processes of `processes.py` run. The server imports this module, and with it all that costs time."""

import errno
import math
import os
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.fsdp import FSDPModule  # noqa: F401  (a second, once)
from torch.utils._python_dispatch import TorchDispatchMode

from dit_fast.models import DiT
from dit_fast.ops import use_backend
from dit_fast.parity import enliven
from dit_fast.train import TrainConfig, Trainer
from dit_fast.train.engine import build_model
from dit_fast.train.files import JsonLog
from tests.train.source import Tiles

SMALL = {"hidden_size": 32, "depth": 2, "num_heads": 1, "patch_size": 2}
STEPS, SAVED = 4, 2


def config(out: Path, **fields: Any) -> TrainConfig:
    options: dict[str, Any] = {
        "steps": STEPS, "batch_size": 16, "lr": 3e-3, "warmup": 2, "ema": 0.9, "model": "DiT", "model_args": SMALL,
        "precision": "float32", "workers": 0, "out": str(out), "save_every": 0, "log_every": 10, "max_grad_norm": 0.5,
    }  # fmt: skip
    return TrainConfig(**{**options, **fields})


def live(config: TrainConfig, dtype: torch.dtype = torch.float64, source: Any = None) -> DiT:
    return enliven(build_model(config, source or Tiles())).to(dtype)


def trained(config: TrainConfig, dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    """Losses, and all weights and averages, of a run with the reference's kernels."""
    with use_backend("reference"):
        trainer = Trainer(config, Tiles(), watchers=[], model=live(config, dtype))
        result = trainer.run()
    weights = {name: whole(p) for name, p in trainer.model.named_parameters()}
    averages = {f"average {name}": p.detach() for name, p in result.ema.named_parameters()}
    return {"losses": torch.tensor(result.losses, dtype=torch.float64), **weights, **averages}


def whole(tensor: torch.Tensor) -> torch.Tensor:
    found = tensor.detach()
    return found.full_tensor() if hasattr(found, "full_tensor") else found


class Stops(Tiles):
    """Rank 1 is told to stop while step 1 loads."""

    def example(self, index: int, generator: torch.Generator) -> Any:
        self.looks = getattr(self, "looks", 0) + 1
        if dist.get_rank() == 1 and self.looks == 4 + 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().example(index, generator)


class Gathers(TorchDispatchMode):
    """Counts the numbers gathered from all ranks, and those scattered over them, by dtype."""

    OPS = {"c10d::_allgather_base_": ("gathered", 0), "c10d::_reduce_scatter_base_": ("scattered", 1)}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, whole = self.OPS.get(function._schema.name, ("", 0))
        if name:
            self.counts[f"{name} {str(args[whole].dtype).removeprefix('torch.')}"] += args[whole].numel()
        return function(*args, **(kwargs or {}))


def four_ranks(rank: int, folder: Path) -> dict[str, Any]:
    """All that tests of four ranks look at, from one start of them. `folder / "one"` is a single process's run."""
    found: dict[str, Any] = {
        "ddp": trained(config(folder / "ddp", accumulate=2, save_every=SAVED)),
        "fsdp": trained(config(folder / "fsdp", parallel="fsdp", checkpointing=True, save_every=SAVED)),
        "one, then fsdp": trained(config(folder, parallel="fsdp", accumulate=2, resume=step(folder / "one"))),
        "ddp, then hsdp": trained(config(folder, parallel="fsdp", shard=2, resume=step(folder / "ddp"))),
        "fsdp, then ddp": trained(config(folder, resume=step(folder / "fsdp"))),
    }
    found["gathers"] = gathers(config(folder, parallel="fsdp", precision="bf16"))
    found["not a number"] = failing(config(folder / "nan", batch_size=32), Tiles(nan=3))
    found["does not divide"] = failing(config(folder, batch_size=18), Tiles())
    found["does not divide shards"] = failing(config(folder, parallel="fsdp", shard=3), Tiles())
    found["full disk"] = full_disk(rank, config(folder / "full", steps=2, save_every=1))
    stopped = Trainer(config(folder / "stopped", save_every=100), Stops(), watchers=[]).run()
    found["stopped"] = stopped.reason, stopped.steps
    return found if rank == 0 else {name: found[name] for name in ("not a number", "full disk", "stopped")}


def full_disk(rank: int, config: TrainConfig) -> int:
    """How many steps there are where rank 2 cannot write."""
    fsync = os.fsync

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    os.fsync = full if rank == 2 else fsync
    try:
        return Trainer(config, Tiles(), watchers=[]).run().steps
    finally:
        os.fsync = fsync


def step(run: Path) -> str:
    return str(run / "checkpoints" / f"step-{SAVED:08d}")


def gathers(config: TrainConfig) -> dict[str, Any]:
    trainer = Trainer(config, Tiles(), watchers=[], model=live(config, torch.float32))
    trainer.model.train()
    x, y = torch.zeros(trainer.images, 1, 4, 4), torch.zeros(trainer.images, dtype=torch.int64)
    with Gathers() as counts:
        loss, _ = trainer._step(x, y, False)
    assert math.isfinite(loss)
    in_blocks = sum(p.numel() for name, p in trainer.model.named_parameters() if name.startswith("blocks."))
    return {
        "counts": dict(counts.counts), "in blocks": in_blocks, "outside": sum(padded(p) for p in outside(trainer)),
        "dtypes": {str(p.dtype) for p in trainer.model.parameters()},
        "gradients": sum(padded(p) for p in outside(trainer) if p.requires_grad),
    }  # fmt: skip


def outside(trainer: Trainer) -> list[torch.Tensor]:
    return [p for name, p in trainer.model.named_parameters() if not name.startswith("blocks.")]


def padded(tensor: torch.Tensor) -> int:
    """Numbers of a parameter when its first dimension is split evenly."""
    world = dist.get_world_size()
    return -(-tensor.shape[0] // world) * world * (tensor.numel() // tensor.shape[0])


def failing(config: TrainConfig, source: Tiles) -> str:
    try:
        Trainer(config, source, watchers=[]).run()
    except (ValueError, FloatingPointError) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


class Loose(Tiles):
    """Draws from torch's own generator too, as a source of someone else's may."""

    def example(self, index: int, generator: torch.Generator) -> Any:
        x, y = super().example(index, generator)
        return x + 0.01 * torch.randn(self.shape), y


KILLED = {"steps": 24, "save_every": 1, "keep": 2, "log_every": 1, "model_args": {**SMALL, "depth": 1}}


def killable(out: Path, accesses: int) -> None:
    """A run that saves after every step; it kills itself at its access to the files of `out` of this number, if any."""
    seen = 0

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if event.split(".")[0] in ("open", "os", "shutil") and any(str(out) in str(given) for given in arguments):
            seen += 1
            if seen == accesses:
                os.kill(os.getpid(), signal.SIGKILL)

    if accesses:
        sys.addaudithook(watch)
    run = config(out, **KILLED)
    Trainer(run, Loose(), watchers=[JsonLog()]).run()
