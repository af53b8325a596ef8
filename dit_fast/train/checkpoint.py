# SPDX-License-Identifier: Apache-2.0
"""Saving a run and taking it up again; `dit_fast.models.runs` says what lies where.

A checkpoint is written beside its place, flushed to the disk, and appears by one rename: whoever looks sees a whole one
or none, whenever the process dies. Nothing in it is unpickled: tensors are in safetensors files, all else is JSON. Its
state is of `torch.distributed.checkpoint`, so that it loads on another number of ranks, sharded or not.
"""

import json
import logging
import os
import shutil
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException

from dit_fast.models import runs
from dit_fast.models.checkpoint import save_folder, save_weights

from .distributed import whole
from .progress import Progress

if TYPE_CHECKING:
    from .engine import Trainer

LOG = logging.getLogger("dit_fast")

SAME = ("objective", "noise_schedule", "flow_times", "seed", "batch_size")
"""Fields without which the rest of a run would not be the rest of this run. (`steps` moves a cosine's end.)"""


def save(trainer: "Trainer", progress: Progress) -> None:
    """Write the checkpoint of this step, then delete all but the newest `config.keep`. Every rank must call it.

    Where the disk says no (full, say), what was written is removed, watchers are told, and training goes on.
    """
    start = time.perf_counter()
    ranks, cpu = trainer.ranks, torch.device("cpu")
    path = runs.checkpoint_path(trainer.out, trainer.step)
    partial = path.with_name(f".{path.name}.partial")
    weights = whole(dict(trainer.model.state_dict()), cpu, keep=ranks.first)
    average = averages(trainer, cpu, keep=ranks.first)
    problem = ranks.agree(_try(_make_room, partial) if ranks.first else None)
    if problem is None:
        mine = _try(_save_models, partial, weights, average, trainer.model.config) if ranks.first else None
        problem = ranks.agree(_try(_save_state, trainer, partial / runs.STATE) or mine)
    del weights, average
    if problem is None:
        problem = ranks.agree(_try(_finish, partial, path, _manifest(trainer, progress)) if ranks.first else None)
    if not ranks.first:
        return
    if problem is None:
        _prune(trainer.out, trainer.config.keep)
    else:
        shutil.rmtree(partial, ignore_errors=True)
        LOG.error("train: step %d could not be saved, training goes on: %s", trainer.step, problem)
    progress.checkpoint(trainer.step, None if problem else path, time.perf_counter() - start, problem)


def averages(trainer: "Trainer", device: torch.device, keep: bool = True) -> dict[str, Tensor]:
    """The averaged model's `state_dict`, whole, in float32 (float64 of float64 weights). Every rank must ask for it."""
    names = [name for name, _ in trainer.model.named_parameters()]
    average = dict(zip(names, trainer.optimizer.ema_parameters(), strict=True))
    found = whole({**trainer.model.state_dict(), **average}, device, keep)
    return {name: tensor.to(torch.promote_types(tensor.dtype, torch.float32)) for name, tensor in found.items()}


def resume(trainer: "Trainer") -> float:
    """Take up the run where `config.resume` says; returns the seconds it had taken. Every rank must call it."""
    ranks = trainer.ranks
    found: Path | None = None
    problem: str | None = None
    if ranks.first:
        try:
            found = find_checkpoint(trainer.config.resume, trainer.out)
        except (ValueError, FileNotFoundError) as error:
            problem = str(error)
    problem = ranks.agree(problem)
    if problem is not None:
        raise ValueError(f"train: {problem}")
    found = ranks.from_first(found)
    seconds = 0.0 if found is None else load(trainer, found)
    if ranks.first:
        for left in (trainer.out / runs.FOLDER).glob(".step-*.partial"):  # of a process that died
            shutil.rmtree(left, ignore_errors=True)
    return seconds


def load(trainer: "Trainer", path: Path) -> float:
    """Weights, averages, optimizer, step and random state of the checkpoint at `path`; returns its run's seconds.

    Raises:
        ValueError: it is not whole, not a training run's, or of another model, data or recipe.
    """
    manifest = runs.read_manifest(path)
    _check(trainer, manifest, path)
    reader = dcp.HuggingFaceStorageReader(str(path / runs.STATE))
    try:
        saved = reader.read_metadata().state_dict_metadata
    except SafetensorError as error:
        raise ValueError(f"train: the state of {path} is not whole: {error}") from error
    target = _state(trainer)
    ours = {name: value for name, value in target.items() if not name.startswith("rng/") or name in saved}
    theirs = {name for name in saved if not name.startswith("rng/")}
    unlike = sorted({name for name in ours if not name.startswith("rng/")} ^ theirs)
    if unlike:
        raise ValueError(f"train: the state of {path} does not fit: only one side has {', '.join(unlike[:4])}")
    with _one_process_is_fine():
        dcp.load(ours, storage_reader=reader)
    for name, device in (("cpu", None), ("cuda", trainer.ranks.device)):
        state = ours.get(f"rng/{trainer.ranks.rank}/{name}")
        if state is not None:
            torch.set_rng_state(state) if device is None else torch.cuda.set_rng_state(state, device)
    trainer.step = manifest["step"]
    return manifest["seconds"]


def _state(trainer: "Trainer") -> dict[str, Tensor]:
    """What torch.distributed.checkpoint saves and loads in place."""
    state: dict[str, Tensor] = {f"rng/{trainer.ranks.rank}/cpu": torch.get_rng_state()}
    if trainer.ranks.device.type == "cuda":
        state[f"rng/{trainer.ranks.rank}/cuda"] = torch.cuda.get_rng_state(trainer.ranks.device)
    for name, param in trainer.model.named_parameters():
        state[f"model/{name}"] = param.detach()
        for key, value in trainer.optimizer.state.get(param, {}).items():
            state[f"optimizer/{name}/{key}"] = value.reshape(1) if value.dim() == 0 else value  # a view: loads in place
    return state


@contextmanager
def _one_process_is_fine() -> Iterator[None]:
    """Without torch.distributed's warning that there is one process only."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def _try(function: Any, *arguments: object) -> str | None:
    """What the disk has against it."""
    try:
        function(*arguments)
    except (OSError, SafetensorError) as error:
        return str(error)
    except CheckpointException as error:  # of any rank
        causes = [cause for cause, _ in error.failures.values()]
        if not all(isinstance(cause, OSError | SafetensorError) for cause in causes):
            raise RuntimeError(str(error)) from error
        return str(causes[0])
    return None


def _make_room(partial: Path) -> None:
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir(parents=True)


def _save_models(
    partial: Path, weights: dict[str, Tensor], average: dict[str, Tensor], config: dict[str, Any]
) -> None:
    save_folder(weights, config, partial)
    save_weights(average, config, partial / runs.AVERAGE)


def _save_state(trainer: "Trainer", folder: Path) -> None:
    writer = dcp.HuggingFaceStorageWriter(str(folder), save_distributed=True)
    with _one_process_is_fine():
        dcp.save(_state(trainer), storage_writer=writer)


def _finish(partial: Path, path: Path, manifest: dict[str, Any]) -> None:
    """Flush all files, write the manifest, and put the folder in its place."""
    files = [file for file in sorted(partial.rglob("*")) if file.is_file()]
    manifest["files"] = {str(file.relative_to(partial)): file.stat().st_size for file in files}
    (partial / runs.MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
    for entry in (*files, partial / runs.MANIFEST, partial / runs.STATE, partial):
        _flush(entry)
    if path.exists():  # not whole, or resuming would have begun there
        os.rename(path, _free_name(path))
    os.rename(partial, path)
    _flush(path.parent)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _free_name(path: Path) -> Path:
    names = (path.with_name(f"{path.name}.damaged{number or ''}") for number in range(1000))
    return next(name for name in names if not name.exists())


def _manifest(trainer: "Trainer", progress: Progress) -> dict[str, Any]:
    order = trainer.order
    return {
        "format": runs.FORMAT, "version": runs.VERSION, "step": trainer.step,
        "images": trainer.step * order.batch, "epoch": order.epoch(trainer.step),
        "batch_of_epoch": trainer.step % order.batches, "seconds": progress.all_seconds,
        "world_size": trainer.ranks.world, "config": asdict(trainer.config), "model": trainer.model.config,
        "data": _data(trainer), "class_names": trainer.source.class_names, "dtype": _dtype(trainer),
        "torch": torch.__version__,
    }  # fmt: skip


def _data(trainer: "Trainer") -> dict[str, Any]:
    source = trainer.source
    return {"images": len(source), "shape": list(source.shape), "classes": source.num_classes, "kind": source.kind}


def _dtype(trainer: "Trainer") -> str:
    return str(trainer.model.x_embedder.proj.weight.dtype).removeprefix("torch.")


def _check(trainer: "Trainer", manifest: dict[str, Any], path: Path) -> None:
    """Whether a checkpoint is of this run."""
    saved, now = manifest["config"], json.loads(json.dumps(asdict(trainer.config)))
    pairs = {f"`{name}`": (now[name], saved.get(name)) for name in SAME}
    for title, ours, theirs in (
        ("model's", trainer.model.config, manifest["model"]), ("data's", _data(trainer), manifest["data"])
    ):  # fmt: skip
        pairs |= {f"the {title} `{name}`": (value, theirs.get(name)) for name, value in ours.items()}
    pairs["the weights' dtype"] = _dtype(trainer), manifest["dtype"]
    unlike = [f"{name}: this run has {a!r}, it has {b!r}" for name, (a, b) in pairs.items() if a != b]
    if unlike:
        raise ValueError(f"train: {path} is of another run: {'; '.join(unlike)}")
    if manifest["step"] > trainer.config.steps:
        raise ValueError(
            f"train: `steps` must be at least {manifest['step']}, those of {path}, got {trainer.config.steps}"
        )
    others = sorted(name for name in now if name not in SAME and now[name] != saved.get(name))
    if others and trainer.ranks.first:
        LOG.info("train: going on from %s with another %s", path, ", ".join(others))


def find_checkpoint(how: str, out: Path) -> Path | None:
    """The checkpoint to go on from."""
    whole_ones, damaged = runs.checkpoints(out)
    for reason in damaged.values():
        LOG.warning("train: passed over: %s", reason)
    if how == "auto":
        if damaged and not whole_ones:
            raise ValueError(f"no checkpoint in {out} is whole: {'; '.join(damaged.values())}")
        return whole_ones[-1] if whole_ones else None
    if how == "never":
        if whole_ones or damaged:
            raise ValueError(f"`out` must have no checkpoints where `resume` is 'never', {out} has some")
        return None
    path = runs.newest_checkpoint(how) or Path(how)
    step = runs.read_manifest(path)["step"]
    later = [other for other in whole_ones if runs.step_of(other) > step]
    if later:
        raise ValueError(f"`out` must have no checkpoints later than `resume`, {path}: it has {later[-1]}")
    return path


def _prune(out: Path, keep: int) -> None:
    """Delete all but the newest whole checkpoints. A name is taken away first, so that none is ever half there."""
    whole_ones, _ = runs.checkpoints(out)
    for path in whole_ones[:-keep] if keep else []:
        going = path.with_name(f".{path.name}.partial")
        try:
            os.rename(path, going)
            shutil.rmtree(going)
        except OSError as error:
            LOG.warning("train: %s could not be deleted: %s", path, error)
