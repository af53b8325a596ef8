# SPDX-License-Identifier: Apache-2.0
"""Draw images from a checkpoint into one PNG, a row for each class.

Pixel-space models only for now: the model's channels are written as they are.
"""

import argparse
from pathlib import Path

import torch


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, help="a file written by dit_fast.models.save_model")
    parser.add_argument("--out", type=Path, default=Path("samples.png"))
    parser.add_argument("--classes", type=int, nargs="+", help="class ids (default: the first ten)")
    parser.add_argument("--per-class", type=int, default=10)
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--cfg-scale", type=float, default=4.0)
    parser.add_argument("--sampler", choices=["ddpm", "ddim"], default="ddpm")
    parser.add_argument("--seed", type=int, default=0)


def run(arguments: argparse.Namespace) -> int:
    from PIL import Image

    from dit_fast.models import load_model
    from dit_fast.sample import sample, to_uint8

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = load_model(arguments.checkpoint, device)
    classes = arguments.classes or list(range(min(10, model.num_classes)))
    for label in classes:
        if not 0 <= label < model.num_classes:
            raise ValueError(f"`--classes` must be from 0 to {model.num_classes - 1}, got {label}")
    if model.in_channels not in (1, 3):
        raise ValueError(f"the model must have 1 or 3 channels to be written as a picture, it has {model.in_channels}")
    labels = torch.tensor(classes, device=device).repeat_interleave(arguments.per_class)
    images = sample(
        model, labels, steps=arguments.steps, cfg_scale=arguments.cfg_scale, sampler=arguments.sampler,
        clip_denoised=True, seed=arguments.seed, progress=True,
    )  # fmt: skip
    pixels = to_uint8(images).cpu()  # (N, H, W, C)
    _, h, w, c = pixels.shape
    picture = pixels.view(len(classes), -1, h, w, c).permute(0, 2, 1, 3, 4).reshape(len(classes) * h, -1, c)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture.squeeze(-1).numpy()).save(arguments.out)
    print(f"{len(labels)} images, a row for each of {classes}: {arguments.out}")
    return 0
