# SPDX-License-Identifier: Apache-2.0
"""What a latent cache says of itself.

    cache/
      manifest.json              a `Manifest`, written last: a folder that has it is whole
      shard-00000.safetensors    the first `shard_rows` rows, shard-00001 the next ...

A shard holds `mean` and `std` (rows, C, h, w) of the VAE's posterior, not scaled; the same of each image's mirror image
as `mirrored_mean` and `mirrored_std` if `flip`; `labels` (rows,) int64; and `names`, bytes: where each row came from,
with a NUL after it. While a cache is made there are also `plan.json`, a manifest without shards, and a
`shard-*.json` for each shard written.
"""

import hashlib
import json
import os
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from dit_fast.files import whole_or_not

FORMAT, VERSION = "dit_fast latents", 1
MANIFEST, PLAN = "manifest.json", "plan.json"


@dataclass(frozen=True)
class Shard:
    """One file of a cache."""

    file: str
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """All that decides the bytes of a cache, and its files.

    Attributes:
        vae: path or id that was given.
        vae_sha256: `fingerprint` of the VAE; this says which one it is, `vae` only where it was.
        scaling_factor, shift_factor: the model sees (latent - shift) * scaling.
        source_sha256: of the names and labels of all rows.
        num_classes, class_names: of the images.
        dtype: of the stored numbers; compute_dtype and device: of the encoder.
        batch_size: images that went through the encoder together.
        flip: mirror images are there too.
    """

    vae: str
    vae_sha256: str
    scaling_factor: float
    shift_factor: float
    image_size: int
    latent_shape: tuple[int, int, int]
    count: int
    source_sha256: str
    num_classes: int
    class_names: tuple[str, ...] | None
    dtype: str
    compute_dtype: str
    device: str
    batch_size: int
    shard_rows: int
    flip: bool
    shards: tuple[Shard, ...] = field(default=())

    def shard_name(self, number: int) -> str:
        return f"shard-{number:05d}.safetensors"

    def rows_of(self, number: int) -> range:
        return range(number * self.shard_rows, min((number + 1) * self.shard_rows, self.count))

    @property
    def shard_count(self) -> int:
        return -(-self.count // self.shard_rows)


def write_json(path: Path, content: dict[str, Any]) -> None:
    with whole_or_not(path) as partial:
        partial.write_text(json.dumps(content, indent=1) + "\n")


def write_manifest(path: Path, manifest: Manifest) -> None:
    write_json(path, {"format": FORMAT, "version": VERSION, **asdict(manifest)})


def is_cache(folder: Path) -> bool:
    """Whether `dit-fast encode` has written here, whole or not."""
    return any((folder / name).is_file() for name in (PLAN, MANIFEST))


def read_manifest(path: Path) -> Manifest:
    """A manifest or plan.

    Raises:
        ValueError: not JSON, not of a latent cache, of another version, or incomplete.
    """
    try:
        content = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else type(content).__name__
        raise ValueError(f"{path} must be of the format {FORMAT!r}, got {found!r}")
    if content.get("version") != VERSION:
        raise ValueError(f"{path} must be of version {VERSION}, got {content.get('version')!r}: encode again")
    named = {key: value for key, value in content.items() if key not in ("format", "version")}
    unlike = sorted(set(named) ^ {f.name for f in fields(Manifest)})
    if unlike:
        raise ValueError(f"{path} must have the entries of a latent cache, {unlike} differ")
    try:
        return typed(named)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} is no manifest of a latent cache: {error}") from error


def typed(named: dict[str, Any]) -> Manifest:
    """JSON's lists as the tuples they were; shards must be the rows, in order."""
    shape, names = tuple(named["latent_shape"]), named["class_names"]
    shards = tuple(Shard(**shard) for shard in named["shards"])
    manifest = Manifest(**{
        **named, "latent_shape": shape, "class_names": None if names is None else tuple(names), "shards": shards
    })  # fmt: skip
    if len(shape) != 3 or manifest.count < 1 or manifest.shard_rows < 1:
        raise ValueError(f"`latent_shape` {shape}, `count` {manifest.count}, `shard_rows` {manifest.shard_rows}")
    if shards and [(shard.file, shard.rows) for shard in shards] != [
        (manifest.shard_name(number), len(manifest.rows_of(number))) for number in range(manifest.shard_count)
    ]:
        raise ValueError(f"its shards do not hold {manifest.count} rows, {manifest.shard_rows} each")
    return manifest


def read_cache(folder: Path) -> Manifest:
    """The manifest of a whole cache.

    Raises:
        FileNotFoundError: there is none.
        ValueError: a cache half made, of another version, or with a shard missing or of another size.
    """
    path = folder / MANIFEST
    if not path.is_file():
        if (folder / PLAN).is_file():
            plan = read_manifest(folder / PLAN)
            done = sum(1 for _ in folder.glob("shard-*.safetensors"))
            raise ValueError(
                f"{folder} is a latent cache half made, {done} of {plan.shard_count} shards: run the same"
                " `dit-fast encode` again to finish it"
            )
        raise FileNotFoundError(f"no latent cache at {folder}: it has no {MANIFEST}")
    manifest = read_manifest(path)
    if not manifest.shards:
        raise ValueError(f"{path} names no shards")
    for shard in manifest.shards:
        file = folder / shard.file
        if not file.is_file():
            raise ValueError(f"{file} is missing: {folder} is not whole")
        if file.stat().st_size != shard.bytes:
            raise ValueError(
                f"{file} must have {shard.bytes} bytes, it has {file.stat().st_size}: it was cut or changed"
            )
    return manifest


def compare_checksums(folder: Path, manifest: Manifest) -> None:
    """Read every shard and compare its checksum.

    Raises:
        ValueError: the files that differ.
    """
    wrong = [shard.file for shard in manifest.shards if sha256_of(folder / shard.file) != shard.sha256]
    if wrong:
        raise ValueError(f"{folder}: {len(wrong)} of {len(manifest.shards)} shards differ from their checksum: {wrong}")


def sha256_of(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        while block := opened.read(1 << 20):
            digest.update(block)
        if hasattr(os, "posix_fadvise"):  # a cache is larger than memory: do not push other things out of it
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return digest.hexdigest()
