# SPDX-License-Identifier: Apache-2.0
"""Latents that `dit-fast encode` has written, read without their VAE. C h w: a latent."""

from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .manifest import Manifest, compare_checksums, read_cache
from .names import Names
from .source import mirrored, position


class LatentSource:
    """Draws from the VAE's posterior of each image, fresh each time, of the image or of its mirror image.

    A convolutional encoder is not mirror-symmetric: the latent of a mirrored image is not the mirrored latent, so both
    posteriors are stored and `flip` chooses between them.

    Shards are mapped into memory when a process first reads from them.

    Args:
        flip: take the mirror image's with probability 1/2; the cache must hold it.
        verify: compare all checksums first, which reads every byte.

    Raises:
        FileNotFoundError, ValueError: no cache, or not a whole one; see `read_cache`.
    """

    kind: Literal["pixels", "latents"] = "latents"

    def __init__(self, path: str | Path, flip: bool = True, verify: bool = False) -> None:
        self.folder, self.flip = Path(path), flip
        self.cache: Manifest = read_cache(self.folder)
        if flip and not self.cache.flip:
            raise ValueError(f"`flip` must be False: {self.folder} was encoded without mirror images (--no-flip)")
        if verify:
            compare_checksums(self.folder, self.cache)
        self.shape = self.cache.latent_shape
        self.num_classes, self.class_names = self.cache.num_classes, self.cache.class_names
        entries = asdict(self.cache)
        del entries["shards"]
        self.manifest: dict[str, Any] = {"kind": "latents", **entries}
        self._shards: dict[int, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_shards": {}}  # maps of memory are each process's own

    def __len__(self) -> int:
        return self.cache.count

    def example(self, index: int, generator: torch.Generator) -> tuple[Tensor, int]:
        mean, std = self.posterior(index, mirrored(self.flip, generator))
        drawn = mean + std * torch.randn(mean.shape, generator=generator)
        return (drawn - self.cache.shift_factor) * self.cache.scaling_factor, self.label(index)

    def posterior(self, index: int, mirror: bool = False) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation (C, h, w) float32 as the VAE gave them, not scaled."""
        before = "mirrored_" if mirror else ""
        return self._row(f"{before}mean", index).float(), self._row(f"{before}std", index).float()

    def label(self, index: int) -> int:
        return int(self._row("labels", index))

    def identity(self, index: int) -> str:
        """The image that the row came from, and the row."""
        shard, row = divmod(position(index, len(self)), self.cache.shard_rows)
        names = Names.from_bytes(self._shard(shard).get_tensor("names").numpy().tobytes())
        return f"{names[row]} ({self.folder / self.cache.shard_name(shard)} row {row})"

    def _row(self, name: str, index: int) -> Tensor:
        shard, row = divmod(position(index, len(self)), self.cache.shard_rows)
        return self._shard(shard).get_slice(name)[row]

    def _shard(self, number: int) -> Any:
        opened = self._shards.get(number)
        if opened is None:
            opened = self._shards[number] = open_shard(self.folder / self.cache.shard_name(number))
        return opened


def open_shard(file: Path) -> Any:
    try:
        return safe_open(file, "pt")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} is no whole shard of latents: {error}") from error
