# SPDX-License-Identifier: Apache-2.0
"""Convert a checkpoint between this package, the public DiT and SiT releases, and diffusers.

The format of SRC is recognised by what it holds. Weights keep their dtype and every bit. DST must not exist; it is
written whole or not at all. What a format cannot hold, and what does not fit, is named and nothing is written.
"""

import argparse
from pathlib import Path

from dit_fast.integrations import checkpoints
from dit_fast.integrations.checkpoints.architecture import describe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, metavar="SRC", help="a .pt or .safetensors file, or the folder"
                        " of a model or a pipeline")  # fmt: skip
    parser.add_argument("target", type=Path, metavar="DST", help="a new folder (dit_fast, diffusers), a new"
                        " .safetensors file (dit_fast), or a new .pt (release, sit)")  # fmt: skip
    parser.add_argument("--to", required=True, choices=checkpoints.FORMATS)
    parser.add_argument("--which", help="the entry of a .pt that holds the weights (default: ema)")
    parser.add_argument("--num-heads", type=int, help="for a .pt of a size that is not among the paper's")
    parser.add_argument("--num-classes", type=int, help="for a .pt whose label table has no null label")


def run(arguments: argparse.Namespace) -> int:
    done = checkpoints.convert(
        arguments.source, arguments.target, arguments.to, which=arguments.which, num_heads=arguments.num_heads,
        num_classes=arguments.num_classes,
    )  # fmt: skip
    dtypes = sorted({str(value.dtype).removeprefix("torch.") for value in done.weights.values()})
    numbers = sum(value.numel() for value in done.weights.values())
    print(f"{arguments.source}: {done.source}\n  {describe(done.config)}\n  {numbers:,} numbers, {', '.join(dtypes)}")
    for note in done.notes:
        print(f"  note: {note}")
    print(f"{arguments.target}: {arguments.to}")
    return 0
