# SPDX-License-Identifier: Apache-2.0
"""Encode images into a latent cache to train from, or check one (`dit-fast encode CACHE --verify`).

Stopped at any time, the same command goes on. Several machines: `torchrun ... -m dit_fast encode ...` on a folder that
all of them see.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dit_fast.data.manifest import Manifest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", help="a folder of class folders of images, or a dataset of Hugging Face's `datasets`")
    parser.add_argument("out", type=Path, nargs="?", help="the cache's folder")
    parser.add_argument("--vae", help="a diffusers AutoencoderKL: a folder or a hub id")
    parser.add_argument("--image-size", type=int, default=256)
    parser.add_argument("--no-flip", action="store_true", help="no mirror images: half the time and space")
    parser.add_argument("--image-column", default="image")
    parser.add_argument("--label-column", default="label")
    parser.add_argument("--split", default="train")
    parser.add_argument("--no-labels", action="store_true")
    parser.add_argument("--dtype", choices=["float32", "float16"], default="float32", help="of what is stored")
    parser.add_argument("--compute-dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--device", choices=["cpu", "cuda"], help="default: a GPU if there is one")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--shard-rows", type=int, default=1024, help="images in a file")
    parser.add_argument("--processes", type=int, help="default: one a core, or one a GPU")
    parser.add_argument("--workers", type=int, help="readers of images a process (default: 0, or 4 for a GPU)")
    parser.add_argument("--verify", action="store_true", help="read the cache again and compare its checksums")


def run(arguments: argparse.Namespace) -> int:
    from dit_fast.data.manifest import compare_checksums, read_cache
    from dit_fast.data.processes import ranks

    if arguments.out is None:
        if not arguments.verify:
            raise ValueError("OUT, the cache's folder, is missing")
        folder = Path(arguments.data)
        manifest = read_cache(folder)
        compare_checksums(folder, manifest)
        print(summary(folder, manifest, True))
        return 0
    with ranks() as group:
        manifest = encode(arguments)
        if group.rank == 0:
            print(summary(arguments.out, manifest, arguments.verify))
    return 0


def encode(arguments: argparse.Namespace) -> "Manifest":
    from dit_fast.data import encode, open_source

    if arguments.vae is None:
        raise ValueError("`--vae` is missing: a folder or hub id of a diffusers AutoencoderKL")
    if Path(arguments.data).is_dir() and arguments.out.resolve().is_relative_to(Path(arguments.data).resolve()):
        raise ValueError(f"OUT must be outside of the data, {arguments.out} is in {arguments.data}")
    source = open_source(
        arguments.data, image_size=arguments.image_size, flip=False, image_column=arguments.image_column,
        label_column=arguments.label_column, split=arguments.split, num_classes=0 if arguments.no_labels else None,
    )  # fmt: skip
    return encode(
        source, arguments.out, arguments.vae, batch_size=arguments.batch_size, shard_rows=arguments.shard_rows,
        flip=not arguments.no_flip, dtype=arguments.dtype, compute_dtype=arguments.compute_dtype,
        device=arguments.device, processes=arguments.processes, workers=arguments.workers, verify=arguments.verify,
        progress=True,
    )  # fmt: skip


def summary(folder: Path, manifest: "Manifest", checked: bool) -> str:
    size = sum(shard.bytes for shard in manifest.shards) / 1e6
    return (
        f"{folder}: {manifest.count} images of {manifest.num_classes} classes, latents {manifest.latent_shape},"
        f" {len(manifest.shards)} shards, {size:.1f} MB{', checksums right' if checked else ''}"
    )
