# SPDX-License-Identifier: Apache-2.0
"""Finetune a pretrained DiT on your own images: a folder with one folder of images for each class.

    python examples/finetune_on_your_folder.py photos/ --checkpoint DiT-XL-2-256x256.pt --vae sd-vae-ft-ema/ --out mine/

The checkpoint may be the public release's, diffusers' or ours. A model of latent images needs `--vae`, the folder or
hub name of a diffusers AutoencoderKL; one of pixels does not. `DiT.from_pretrained("mine")` loads the result, whose
labels are named in `mine/classes.json`. Started again after an interruption it goes on where it was.
"""

import argparse
import json
from pathlib import Path

import torch

from dit_fast.data import Source, encode, load_vae, open_source
from dit_fast.integrations import checkpoints
from dit_fast.models import DiT
from dit_fast.train import TrainConfig, Trainer

TABLE = "y_embedder.embedding_table.weight"


def read_folder(folder: Path, model: DiT, vae: str | None, out: Path) -> Source:
    """The images as the model takes them; through the VAE, where there is one, once, before training."""
    size = model.config["input_size"][0]
    channels = 1 if model.in_channels == 1 else 3
    if vae is not None:
        size *= 2 ** (len(load_vae(vae).config.block_out_channels) - 1)  # pixels a latent
        encode(open_source(folder, kind="folder", image_size=size, flip=False), out, vae)
        source = open_source(out, kind="latents")
    else:
        source = open_source(folder, kind="folder", image_size=size, channels=channels)
    if source.num_classes == 0:
        raise SystemExit(f"{folder} must hold one folder of images for each class, it holds images alone")
    if source.shape[0] != model.in_channels:
        raise SystemExit(f"the model takes {model.in_channels} channels, images have {source.shape[0]}: --vae?")
    return source


@torch.no_grad()
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

    pretrained = checkpoints.load(options.checkpoint)
    source = read_folder(options.folder, pretrained, options.vae, options.out / "latents")
    config = TrainConfig(
        steps=options.steps, batch_size=min(options.batch_size, len(source)), lr=options.lr,
        warmup=options.steps // 20, workers=min(4, len(source) // 100), out=str(options.out), save_every=500,
        ema=min(0.9999, max(0.0, 1 - 10 / options.steps)),  # else a short run's average is still what it started from
    )  # fmt: skip
    result = Trainer(config, source, model=with_classes(pretrained, source.num_classes)).run()
    result.ema.save_pretrained(options.out)
    (options.out / "classes.json").write_text(json.dumps(source.class_names) + "\n")
    print(f"{options.out}/: {source.num_classes} classes, {len(source)} images, {result.steps} steps")


if __name__ == "__main__":
    main()
