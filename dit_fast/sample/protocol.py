# SPDX-License-Identifier: Apache-2.0
"""Many images into one `.npz`, as FID is measured on: sharded over ranks, resumable, the same file in any case.

Image k has the label and the noise of k alone, and a batch is always the same images, so the file depends neither on
the number of ranks nor on how often the run was killed. A batch is one part file, written whole by rename; rank r of R
draws batches r, r + R, ...; rank 0 streams the parts into the `.npz`. Ranks share a file system and, of each other,
wait only. N images, H W size.
"""

import contextlib
import glob
import hashlib
import json
import shutil
import zipfile
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from tqdm import tqdm

from dit_fast.files import whole_or_not

from .decoding import decode
from .pictures import to_uint8
from .sampler import Sampler

Draw = Callable[[range, Tensor | None], Tensor]
"""Images of these numbers, with these labels (n,) int64 or None: uint8 (n, H, W, 1 or 3)."""


def protocol_labels(
    count: int, num_classes: int, how: Literal["random", "balanced"] = "random", seed: int = 0
) -> Tensor | None:
    """The labels of a protocol: int64 (count,) on the CPU, or None for an unconditional model (num_classes 0).

    "random" draws each uniformly, as the published results have it. "balanced" gives each class the same number, the
    first count % num_classes one more, in turn: so every stretch of the file is balanced, of which the Inception
    score is a mean.
    """
    if how not in ("random", "balanced"):
        raise ValueError(f"labels: expected 'random' or 'balanced', got {how!r}")
    if num_classes == 0:
        return None
    if how == "balanced":
        return torch.arange(count) % num_classes
    return torch.randint(0, num_classes, (count,), generator=torch.Generator().manual_seed(seed))


def sample_to_npz(
    sampler: Sampler,
    count: int,
    out: Path,
    *,
    labels: Tensor | None,
    seed: int = 0,
    size: int | tuple[int, int] | None = None,
    vae: Any = None,
    scale: float | None = None,
    batch_size: int = 32,
    plan: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> Path:
    """Draw images 0 ... count - 1 of (seed, number) with a `Sampler` and write them to `out`; see `draw_to_npz`.

    Args:
        labels: int64 (count,), see `protocol_labels`; None for an unconditional model.
        size: H and W of what the model draws, where it is not the model's own.
        vae, scale: where the model draws latents; see `decode`.
        plan: how `sampler` was made, in JSON values. What is drawn here, and a digest of all weights, is added.
    """

    def draw(numbers: range, labels: Tensor | None) -> Tensor:
        n = len(numbers)
        drawn = sampler(n if labels is None else labels, seeds=numbers, seed=seed, size=size, batch_size=n)
        return to_uint8(drawn if vae is None else decode(vae, drawn, scale))

    added = {
        "seed": seed, "size": size, "scale": scale, "weights_sha256": digest(sampler.model),
        "vae_sha256": None if vae is None else digest(vae),
    }  # fmt: skip
    return draw_to_npz(
        draw, count, out, labels=labels, batch_size=batch_size, plan={**(plan or {}), **added}, progress=progress
    )


def digest(model: Any) -> str | None:
    """sha256 of a module's weights with their names and dtypes; None of what is no module."""
    if not isinstance(model, torch.nn.Module):
        return None
    sha = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        sha.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def draw_to_npz(
    draw: Draw,
    count: int,
    out: Path,
    *,
    labels: Tensor | None = None,
    batch_size: int = 32,
    plan: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> Path:
    """Draw images 0 ... count - 1 and write them to `out` as `arr_0`, uint8 (count, H, W, 3); grey is repeated.

    Call it on every rank of torch.distributed's default group, if there is one. Beside `out` are, until it is whole,
    `out.parts/`, and from the start `out.json`: `plan`, everything that the images depend on. A second call goes on
    from the parts that are there; where `out` is there already, it returns at once.

    Args:
        draw: see `Draw`. The same arguments must give the same images, whatever was drawn before.
        labels: int64 (count,); None for an unconditional model.
        plan: JSON values; `count`, `batch_size` and a digest of the labels are added.

    Raises:
        ValueError: an argument that does not fit; a plan other than that of the files that are there (it is named,
            and nothing is touched); a `draw` that returns something else.
    """
    out = out if out.suffix == ".npz" else out.with_name(out.name + ".npz")
    _check(count, batch_size, labels)
    rank, world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    sha = None if labels is None else hashlib.sha256(labels.numpy().tobytes()).hexdigest()
    added = {"count": count, "batch_size": batch_size, "labels_sha256": sha}
    wanted = json.loads(json.dumps({**(plan or {}), **added}))
    _check_plan(out, wanted)
    _wait(world_size)  # until every rank has looked
    parts = out.with_name(out.name + ".parts")
    if out.exists():
        shutil.rmtree(parts, ignore_errors=True)  # of a run that was killed just before its end
        return out
    parts.mkdir(parents=True, exist_ok=True)
    if rank == 0:
        with whole_or_not(_plan_path(out)) as partial:
            partial.write_text(json.dumps(wanted, indent=2) + "\n")
    files = [parts / f"{start:08d}.npy" for start in range(0, count, batch_size)]
    missing = [i for i in range(rank, len(files), world_size) if not files[i].exists()]
    for i in tqdm(missing, desc="drawing", unit="batch", disable=not progress or rank > 0):
        numbers = range(i * batch_size, min((i + 1) * batch_size, count))
        chosen = None if labels is None else labels[numbers.start : numbers.stop]
        images = _as_rgb(draw(numbers, chosen), len(numbers))
        with whole_or_not(files[i]) as partial, partial.open("wb") as file:
            np.save(file, images)
    _wait(world_size)
    if rank == 0:
        for left in out.parent.glob(f"{glob.escape(out.name)}.*.partial"):  # by a kill; it may be large
            left.unlink()
        with whole_or_not(out) as partial:
            _assemble(files, count, partial)
        shutil.rmtree(parts)
    _wait(world_size)  # `out` is there when any rank returns
    return out


@contextlib.contextmanager
def ranks(device: str) -> Iterator[str]:
    """Join the ranks of `torchrun`, if it started this process; gives the device, of "cuda" the rank's own GPU."""
    if dist.is_initialized() or not dist.is_torchelastic_launched():
        yield device
        return
    if device == "cuda":
        device = f"cuda:{dist.get_node_local_rank()}"
        torch.cuda.set_device(device)
    # Ranks only wait for each other, so gloo does; one may be slower than another by hours.
    dist.init_process_group("gloo", timeout=timedelta(days=7))
    try:
        yield device
    finally:
        dist.destroy_process_group()


def _check(count: int, batch_size: int, labels: Tensor | None) -> None:
    for name, value in (("count", count), ("batch_size", batch_size)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}: expected an int >= 1, got {value!r}")
    if labels is not None and (labels.dtype != torch.int64 or labels.shape != (count,) or labels.device.type != "cpu"):
        raise ValueError(
            f"labels: expected torch.int64 ({count},) on the CPU, "
            f"got {labels.dtype} {tuple(labels.shape)} on {labels.device}"
        )


def _plan_path(out: Path) -> Path:
    return out.with_name(out.name + ".json")


def _check_plan(out: Path, wanted: dict[str, Any]) -> None:
    path = _plan_path(out)
    if not path.exists():
        if out.exists():
            raise ValueError(f"out: {out} exists, and no {path.name} beside it says what it holds; expected a new path")
        return
    found = json.loads(path.read_text())
    differ = sorted(key for key in wanted.keys() | found.keys() if wanted.get(key) != found.get(key))
    if differ:
        says = "; ".join(f"{key} {_short(found.get(key))}, got {_short(wanted.get(key))}" for key in differ)
        raise ValueError(f"out: {path} was begun with {says}; expected the same, or a new path")


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _wait(world_size: int) -> None:
    if world_size > 1:
        dist.barrier()


def _as_rgb(images: Tensor, count: int) -> np.ndarray:
    if images.dtype != torch.uint8 or images.dim() != 4 or len(images) != count or images.shape[-1] not in (1, 3):
        raise ValueError(
            f"draw: expected it to return torch.uint8 ({count}, H, W, 1 or 3), got {images.dtype} {tuple(images.shape)}"
        )
    return images.expand(*images.shape[:-1], 3).cpu().contiguous().numpy()


def _assemble(files: list[Path], count: int, file: Path) -> None:
    """Stream the parts into what np.savez would write, one part in memory at a time."""
    shape = np.load(files[0], mmap_mode="r").shape[1:]
    header = {"descr": "|u1", "fortran_order": False, "shape": (count, *shape)}
    member = zipfile.ZipInfo("arr_0.npy", date_time=(1980, 1, 1, 0, 0, 0))  # so that the same images are the same file
    with zipfile.ZipFile(file, "w") as archive, archive.open(member, "w", force_zip64=True) as stream:
        np.lib.format.write_array_header_1_0(stream, header)
        for path in files:
            part = np.load(path)
            if part.shape[1:] != shape or part.dtype != np.uint8:
                raise ValueError(f"out: expected {path} to hold uint8 (n, {shape}), got {part.dtype} {part.shape}")
            stream.write(part.data)
