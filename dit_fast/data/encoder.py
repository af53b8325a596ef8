# SPDX-License-Identifier: Apache-2.0
"""One process of `dit-fast encode`: images in, shards out. N batch, C h w a latent."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dit_fast.files import whole_or_not

from .manifest import Manifest, Shard, write_json
from .names import Names
from .source import Source
from .vae import exact, fingerprint, load_vae, posterior

Report = Callable[[int], None]


@dataclass(frozen=True)
class Job:
    """What every process is told; `device` is this one's.

    Attributes:
        vae: path or id.
        workers: processes that read images for this one; 0 reads them here.
    """

    source: Source
    out: Path
    vae: str
    plan: Manifest
    device: str
    workers: int

    def run(self, numbers: list[int], report: Report) -> list[str]:
        """Write the shards of these numbers; returns what was wrong with images, whose shards are not written.

        Args:
            report: called with the number of rows after each batch.

        Raises:
            ValueError: the VAE is not the plan's, or made numbers that are not finite.
            OSError: a shard could not be written.
        """
        vae = load_vae(self.vae)
        if fingerprint(vae) != self.plan.vae_sha256:
            raise ValueError(f"`vae` must be the same for all processes, {self.vae} has other weights here")
        vae = vae.to(self.device)
        if self.plan.compute_dtype != "float32":
            vae = vae.to(getattr(torch, self.plan.compute_dtype))
        problems: list[str] = []
        with exact():
            batches = self.batches(numbers)
            for number in numbers:
                problems += self.shard(number, vae, batches, report)
        return problems

    def batches(self, numbers: list[int]) -> "Iterator[Tensor | list[str]]":
        """Batches of all shards one after another, none over a shard's end: a shard's bytes are its own."""
        size = self.plan.batch_size
        rows = [
            list(held[start : start + size])
            for held in map(self.plan.rows_of, numbers)
            for start in range(0, len(held), size)
        ]
        return iter(DataLoader(
            Pictures(self.source), batch_sampler=rows, num_workers=self.workers, collate_fn=together,
            pin_memory=self.plan.device == "cuda",
        ))  # fmt: skip

    def shard(self, number: int, vae: Any, batches: "Iterator[Tensor | list[str]]", report: Report) -> list[str]:
        """Encode and write one shard, unless an image of it cannot be read; returns what was wrong."""
        rows, problems = self.plan.rows_of(number), []
        parts: list[dict[str, Tensor]] = []
        for start in range(0, len(rows), self.plan.batch_size):
            batch = next(batches)
            if isinstance(batch, list):
                problems += batch
            elif not problems:
                parts.append(self.latents(vae, batch, rows[start]))
            report(len(rows[start : start + self.plan.batch_size]))
        if not problems:
            self.write(number, {name: torch.cat([part[name] for part in parts]) for name in parts[0]})
        return problems

    def latents(self, vae: Any, images: Tensor, first: int) -> dict[str, Tensor]:
        """What is stored of a batch, whose first row is `first`."""
        inputs = images.to(self.device, getattr(torch, self.plan.compute_dtype))
        found = dict(zip(("mean", "std"), posterior(vae, inputs), strict=True))
        if self.plan.flip:
            found |= zip(("mirrored_mean", "mirrored_std"), posterior(vae, inputs.flip(-1)), strict=True)
        stored = {name: values.to(getattr(torch, self.plan.dtype)).cpu().contiguous() for name, values in found.items()}
        for name, values in stored.items():
            bad = [self.source.identity(first + row) for row, x in enumerate(values) if not x.isfinite().all()]
            if bad:
                raise ValueError(
                    f"`{name}` in {self.plan.dtype}, computed in {self.plan.compute_dtype}, is not finite: {bad}"
                )
        return stored

    def write(self, number: int, latents: dict[str, Tensor]) -> None:
        """The shard's description, then the shard: the second makes the first true."""
        rows = self.plan.rows_of(number)
        names = Names(self.source.identity(row) for row in rows)
        content = save({
            **latents, "labels": torch.tensor([self.source.label(row) for row in rows]),
            "names": torch.from_numpy(np.frombuffer(names.blob, np.uint8).copy()),
        })  # fmt: skip
        file = self.out / self.plan.shard_name(number)
        shard = Shard(file.name, len(rows), len(content), hashlib.sha256(content).hexdigest())
        write_json(description(file), asdict(shard))
        with whole_or_not(file) as partial:
            partial.write_bytes(content)


def description(file: Path) -> Path:
    return file.with_suffix(".json")


class Pictures(Dataset[Any]):
    """Images of a source for a DataLoader; what is wrong with one is a string, for another process to raise."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def __getitem__(self, index: int) -> Tensor | str:
        try:
            return self.source.example(index, torch.Generator())[0]
        except ValueError as error:
            return str(error)


def together(items: list[Tensor | str]) -> Tensor | list[str]:
    wrong = [item for item in items if isinstance(item, str)]
    return wrong or torch.stack([item for item in items if isinstance(item, Tensor)])
