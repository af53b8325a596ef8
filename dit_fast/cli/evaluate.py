# SPDX-License-Identifier: Apache-2.0
"""FID, Inception score, precision and recall of images, against a reference.

SAMPLES and the reference are .npz files (arr_0, uint8 NHWC: what `dit-fast sample --npz` writes, and ADM's reference
batches) or folders of pictures. Nothing is downloaded: Inception's weights have to be on disk.
"""

import argparse
import json
from pathlib import Path

import torch


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("samples", type=Path, metavar="SAMPLES")
    parser.add_argument("--reference", type=Path, help="images, or the stored statistics, to compare with; without it"
                        " there is an Inception score only")  # fmt: skip
    parser.add_argument("--weights", type=Path, help="torch-fidelity's Inception weights (default: where torch.hub"
                        " keeps its downloads)")  # fmt: skip
    parser.add_argument("--layer", type=int, default=2048, help="number of features: 2048 (as published), 768, 192, 64")
    parser.add_argument("--count", type=int, help="stop unless there are so many samples")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--json", type=Path, help="write the result to this file")


def run(arguments: argparse.Namespace) -> int:
    from dit_fast.sample.evaluate import evaluate, open_images

    found = open_images(arguments.samples).count
    if arguments.count not in (None, found):
        raise ValueError(f"{arguments.samples}: expected {arguments.count} images (--count), got {found}")
    try:
        result = evaluate(
            arguments.samples, arguments.reference, weights=arguments.weights, layer=arguments.layer,
            batch_size=arguments.batch_size, device="cuda" if torch.cuda.is_available() else "cpu",
        )  # fmt: skip
    except ImportError as missing:
        raise ValueError(str(missing)) from missing
    for name in ("fid", "inception_score", "inception_score_std", "precision", "recall"):
        value = result[name]
        print(f"{name:22s}" + (f"{value:.4f}" if value is not None else f"absent: {result['absent'][name]}"))
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0
