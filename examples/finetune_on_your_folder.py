# SPDX-License-Identifier: Apache-2.0
"""Finetune a pretrained DiT on your own images: a folder with one folder of images for each class.

    python examples/finetune_on_your_folder.py photos/ --checkpoint DiT-XL-2-256x256.pt --vae sd-vae-ft-ema/ --out mine/

The checkpoint may be the public release's, diffusers' or ours. A model of latent images needs `--vae`, the folder or
hub name of a diffusers AutoencoderKL; one of pixels does not. `DiT.from_pretrained("mine")` loads the result, whose
labels are named in `mine/classes.json`.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from dit_fast.diffusion import create_diffusion
from dit_fast.integrations import checkpoints
from dit_fast.models import DiT
from dit_fast.train.loop import TrainConfig, train

TABLE = "y_embedder.embedding_table.weight"


def read_folder(folder: Path, size: tuple[int, int], mode: str) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    """Images (M, C, H, W) in [-1, 1], cropped in the middle, and mirrored ones after them; labels (M,); class names."""
    classes = sorted(path.name for path in folder.iterdir() if path.is_dir())
    files = [(file, label) for label, name in enumerate(classes) for file in sorted((folder / name).iterdir())]
    if not files:
        raise SystemExit(f"{folder} must hold one folder of images for each class, it holds none")
    height, width = size
    pictures = [ImageOps.fit(Image.open(file).convert(mode), (width, height)) for file, _ in files]
    pixels = torch.from_numpy(np.stack([np.asarray(p).reshape(height, width, -1) for p in pictures]))
    images = pixels.permute(0, 3, 1, 2) / 127.5 - 1
    labels = torch.tensor([label for _, label in files])
    return torch.cat([images, images.flip(-1)]), labels.repeat(2), classes


@torch.no_grad()
def encode(images: torch.Tensor, vae, batch_size: int = 16) -> torch.Tensor:
    """The latents of all images, once, before training."""
    parts = [vae.encode(x).latent_dist.sample() * vae.config.scaling_factor for x in images.split(batch_size)]
    return torch.cat(parts)


def with_classes(model: DiT, count: int) -> DiT:
    """The same model with a fresh label table; the null label, which guidance needs, keeps what it has learned."""
    if model.config["num_classes"] == 0 or model.config["class_dropout_prob"] == 0:
        raise SystemExit("the checkpoint must be of a model with labels and a null label")
    new = DiT(**{**model.config, "num_classes": count})
    weights = model.float().state_dict()
    table = new.state_dict()[TABLE]
    table[-1] = weights[TABLE][-1]
    new.load_state_dict({**weights, TABLE: table})
    return new


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--vae", help="of a model of latent images: a diffusers AutoencoderKL")
    parser.add_argument("--out", type=Path, default=Path("finetuned"))
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1e-4)
    options = parser.parse_args(arguments)

    device = "cuda" if torch.cuda.is_available() else "cpu"
    pretrained = checkpoints.load(options.checkpoint)
    height, width = pretrained.config["input_size"]
    if options.vae:
        from diffusers import AutoencoderKL

        vae = AutoencoderKL.from_pretrained(options.vae).to(device).eval()
        scale = 2 ** (len(vae.config.block_out_channels) - 1)  # pixels a latent
        images, labels, classes = read_folder(options.folder, (height * scale, width * scale), "RGB")
        images = encode(images.to(device), vae)
    else:
        mode = "L" if pretrained.in_channels == 1 else "RGB"
        images, labels, classes = read_folder(options.folder, (height, width), mode)
        images = images.to(device)
    if images.shape[1] != pretrained.in_channels:
        raise SystemExit(f"the model takes {pretrained.in_channels} channels, images have {images.shape[1]}: --vae?")

    model = with_classes(pretrained, len(classes)).to(device)
    config = TrainConfig(
        options.steps, min(options.batch_size, len(images)), options.lr, warmup=options.steps // 20,
        ema=min(0.9999, max(0.0, 1 - 10 / options.steps)),  # else a short run's average is still what it started from
    )  # fmt: skip
    diffusion = create_diffusion("", learn_sigma=model.learn_sigma)
    result = train(model, diffusion, images, labels.to(device), config)
    result.ema.save_pretrained(options.out)
    (options.out / "classes.json").write_text(json.dumps(classes) + "\n")
    print(f"{options.out}/: {len(classes)} classes, {len(images)} images, loss {result.losses[-1]:.4f}")


if __name__ == "__main__":
    main()
