# SPDX-License-Identifier: Apache-2.0
"""Make a latent cache: plan, encode what is missing, describe. See `manifest.py` for what is in the folder.

A kill at any time costs the shards in work and nothing else. The bytes of a cache depend on its manifest only: not on
the number of processes, nor on where it was interrupted.
"""

import errno
import hashlib
import json
import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import torch
from tqdm import tqdm

from .encoder import Job, description
from .manifest import MANIFEST, PLAN, Manifest, Shard, compare_checksums, read_cache, read_manifest, write_manifest
from .processes import Ranks, ranks, run_children
from .source import Source
from .vae import fingerprint, latent_shape, load_vae, scale_of

LOCK = ".lock"
SHOWN = 10


def encode(
    source: Source, out: str | Path, vae: str, *, batch_size: int = 16, shard_rows: int = 1024, flip: bool = True,
    dtype: str = "float32", compute_dtype: str = "float32", device: str | None = None, processes: int | None = None,
    workers: int | None = None, verify: bool = False, progress: bool = False,
) -> Manifest:  # fmt: skip
    """Encode a source of pixels with a diffusers AutoencoderKL, or go on where an earlier call was stopped.

    Under torchrun the ranks share the shards, each on its GPU.

    Args:
        source: square images in [-1, 1], without a flip of its own.
        out: a folder that is new, empty, or a cache of the same source and options.
        vae: path or id of the VAE.
        batch_size: images encoded together.
        shard_rows: images in a file.
        flip: encode each image's mirror image too, which doubles time and space.
        dtype: of what is stored, "float32" or "float16".
        compute_dtype: of the VAE, "float32", "bfloat16" or "float16".
        device: "cpu" or "cuda"; None takes a GPU if there is one.
        processes: None: one a core, each of one thread, or one a GPU.
        workers: processes that read images, for each that encodes; None: none on the CPU, 4 for a GPU.
        verify: compare all checksums at the end.

    Returns: the manifest of the whole cache.

    Raises:
        ValueError: bad arguments, images that cannot be read (all are named), another cache or other files in `out`.
        OSError: the disk is full, or fails; whole shards are kept.
    """
    out = Path(out)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    check_options(source, batch_size, shard_rows, dtype, compute_dtype, device, processes, workers)
    with ranks() as group, ExitStack() as stack:
        if group.size > 1 and (processes or 1) > 1:
            raise ValueError(f"`processes` must be 1 under torchrun, got {processes}")
        plan = make_plan(source, vae, batch_size, shard_rows, flip, dtype, compute_dtype, device)
        begin(out, plan, group, stack)
        workers = workers if workers is not None else 4 if device == "cuda" else 0
        place = f"cuda:{group.local}" if device == "cuda" and group.size > 1 else device
        job = Job(source, out, vae, plan, place, workers)
        missing = group.all(missing_shards(out, plan))[0]
        problems = [p for held in group.all(work(job, missing, group, processes, progress)) for p in held]
        refuse(problems)
        if group.rank == 0:
            finish(out, plan)
        group.all(None)
    manifest = read_cache(out)
    if verify and group.rank == 0:
        compare_checksums(out, manifest)
    return manifest


def refuse(problems: list[str]) -> None:
    """Raise, if images could not be read."""
    if problems:
        more = f" and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise ValueError(
            f"{len(problems)} images cannot be read: {'; '.join(problems[:SHOWN])}{more}. All other shards are"
            " written; put whole images in their place and run the same command"
        )


def check_options(
    source: Source, batch_size: int, shard_rows: int, dtype: str, compute_dtype: str, device: str,
    processes: int | None, workers: int | None,
) -> None:  # fmt: skip
    for name, value, low in (
        ("batch_size", batch_size, 1), ("shard_rows", shard_rows, 1), ("processes", processes, 1),
        ("workers", workers, 0),
    ):  # fmt: skip
        if value is not None and value < low:
            raise ValueError(f"`{name}` must be at least {low}, got {value}")
    for name, chosen, known in (
        ("dtype", dtype, ("float32", "float16")), ("compute_dtype", compute_dtype, ("float32", "bfloat16", "float16")),
        ("device", device, ("cpu", "cuda")),
    ):  # fmt: skip
        if chosen not in known:
            raise ValueError(f"`{name}` must be one of {known}, got {chosen!r}")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("`device` is 'cuda', but PyTorch sees no GPU")
    if source.kind != "pixels" or source.shape[1] != source.shape[2]:
        raise ValueError(f"`source` must be of square images, got {source.kind} {source.shape}")
    if getattr(source, "flip", False):
        raise ValueError("`source` must not flip: a flip would be drawn once for ever; `flip` of encode stores both")


def make_plan(
    source: Source, vae: str, batch_size: int, shard_rows: int, flip: bool, dtype: str, compute_dtype: str, device: str
) -> Manifest:
    loaded = load_vae(vae)
    if loaded.config.in_channels != source.shape[0]:
        raise ValueError(f"`source` must have the VAE's {loaded.config.in_channels} channels, got {source.shape[0]}")
    factor, shift = scale_of(loaded)
    digest = hashlib.sha256()
    for index in range(len(source)):
        digest.update(f"{source.identity(index)}\0{source.label(index)}\0".encode(errors="surrogateescape"))
    size = source.shape[1]
    return Manifest(
        vae=vae, vae_sha256=fingerprint(loaded), scaling_factor=factor, shift_factor=shift, image_size=size,
        latent_shape=latent_shape(loaded, size), count=len(source), source_sha256=digest.hexdigest(),
        num_classes=source.num_classes, class_names=source.class_names, dtype=dtype, compute_dtype=compute_dtype,
        device=device, batch_size=batch_size, shard_rows=shard_rows, flip=flip,
    )  # fmt: skip


def begin(out: Path, plan: Manifest, group: Ranks, stack: ExitStack) -> None:
    """The folder holds this plan and is ours until the stack ends. Rank 0 sees to it; its refusal is everyone's."""
    refusal: Exception | None = None
    if group.rank == 0:
        try:
            stack.enter_context(locked(out))
            prepare(out, plan)
        except (ValueError, OSError) as error:
            refusal = error
    for other in group.all(plan):
        unlike = differences(plan, other)
        if unlike:
            raise ValueError(f"all ranks must find the same VAE and images, they differ: {unlike}")
    refusal = group.all(refusal)[0]
    if refusal is not None:
        raise refusal


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """One run at a time in a folder. The lock ends with the process, however that ends."""
    import fcntl

    out.mkdir(parents=True, exist_ok=True)
    with (out / LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another process is encoding into {out}") from None
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
                raise
            logging.getLogger("dit_fast").warning("%s has no locks: see yourself that one run at a time writes it", out)
        try:
            yield
        finally:
            (out / LOCK).unlink(missing_ok=True)


def prepare(out: Path, plan: Manifest) -> None:
    """Write the plan into a new folder; in an old one, see that it is the same, and clear what a kill left behind."""
    for partial in [path for name in (PLAN, MANIFEST, "shard-") for path in out.glob(f"{name}*.partial")]:
        partial.unlink()
    for name in (MANIFEST, PLAN):
        if (out / name).is_file():
            there = read_manifest(out / name)
            unlike = differences(replace(there, shards=()), plan)
            if unlike:
                raise ValueError(f"{out} is a latent cache of something else: {unlike}; take another folder")
            break
    else:
        held = sorted(path.name for path in out.iterdir() if path.name != LOCK)
        if held:
            raise ValueError(f"`out` must be a new folder or a latent cache, {out} holds {held[:SHOWN]}")
        write_manifest(out / PLAN, plan)


def differences(there: Manifest, asked: Manifest) -> str:
    """In words; where the VAE was makes none."""
    old, new = asdict(there), asdict(asked)
    return ", ".join(
        f"`{name}` is {old[name]!r} there, {new[name]!r} now"
        for name in old
        if name != "vae" and old[name] != new[name]
    )


def written(out: Path, plan: Manifest, number: int) -> Shard | None:
    """The description of a shard that is whole."""
    file = out / plan.shard_name(number)
    if not (file.is_file() and description(file).is_file()):
        return None
    shard = Shard(**json.loads(description(file).read_text()))
    return shard if file.stat().st_size == shard.bytes else None


def missing_shards(out: Path, plan: Manifest) -> list[int]:
    if (out / MANIFEST).is_file():
        read_cache(out)
        return []
    return [number for number in range(plan.shard_count) if written(out, plan, number) is None]


def work(job: Job, missing: list[int], group: Ranks, processes: int | None, progress: bool) -> list[str]:
    """This rank's share of the missing shards; returns what was wrong with images."""
    own = missing[group.rank :: group.size]
    on_gpu = job.plan.device == "cuda"
    count = processes or (1 if group.size > 1 else torch.cuda.device_count() if on_gpu else torch.get_num_threads())
    count = min(count, len(own))
    rows = sum(len(job.plan.rows_of(number)) for number in own)
    with tqdm(total=rows, desc="encode", unit="image", disable=not (progress and own) or group.rank > 0) as bar:
        report = bar.update
        try:
            return run_children(job, own, count, report) if count > 1 else job.run(own, report) if own else []
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise OSError(
                error.errno, f"no space left for {job.out}; whole shards are kept: make room and run the same command"
            ) from error


def finish(out: Path, plan: Manifest) -> None:
    """The manifest, then nothing but the cache in its folder."""
    if not (out / MANIFEST).is_file():
        shards = [written(out, plan, number) for number in range(plan.shard_count)]
        assert all(shards), "a shard that was written has gone"
        write_manifest(out / MANIFEST, replace(plan, shards=tuple(shard for shard in shards if shard)))
    for number in range(plan.shard_count):
        description(out / plan.shard_name(number)).unlink(missing_ok=True)
    (out / PLAN).unlink(missing_ok=True)
