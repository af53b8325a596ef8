# SPDX-License-Identifier: Apache-2.0
"""Draw images from a checkpoint: a picture with a row for each class, a folder of files, or the .npz that FID is
measured on.

CHECKPOINT is a training run's folder (its newest averaged weights), a file or folder of any format that `dit-fast
convert` reads, or a model's owner/name on the Hugging Face Hub. A model of latents needs --vae. Image k is the same
whatever else is drawn with it. `torchrun ... -m dit_fast sample ... --npz FILE --count N` shares the work among GPUs.
"""

import argparse
from pathlib import Path
from typing import Any

DTYPES = ("float32", "bfloat16", "float16")
DEFAULT = {"ddpm": "ddpm", "flow": "euler"}
"""The default sampler of each objective."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="CHECKPOINT")
    what = parser.add_argument_group("what")
    what.add_argument("--classes", nargs="+", metavar="CLASS", help="names or ids (default: the first ten)")
    what.add_argument("--per-class", type=int, default=10, help="images of each class (default: 10)")
    what.add_argument("--count", type=int, help="images of --npz, or of a model without labels")
    what.add_argument("--labels", choices=["random", "balanced"], default="random", help="of --npz")
    what.add_argument("--seed", type=int, default=0)
    what.add_argument("--size", type=int, nargs=2, metavar=("H", "W"), help="of what the model draws, latents or pixels"
                      " (default: its own)")  # fmt: skip
    how = parser.add_argument_group("how")
    how.add_argument("--sampler", help="ddpm, ddim, euler, heun or a scheduler class of diffusers (default: ddpm, or"
                     " euler for a run of flow)")  # fmt: skip
    how.add_argument("--steps", default="250", help="a number, or of ddpm and ddim a spacing such as ddim50")
    how.add_argument("--eta", type=float, default=0.0, help="noise of ddim, 0 to 1")
    how.add_argument("--cfg-scale", type=float, help="guidance (default: 4; 1 of a model that cannot be guided)")
    how.add_argument("--cfg-interval", type=float, nargs=2, metavar=("LOW", "HIGH"), help="guide at these timesteps of"
                     " 1000 only")  # fmt: skip
    how.add_argument("--cfg-channels", default="3", help="how many channels are guided, or all (default: 3, as the"
                     " published results)")  # fmt: skip
    how.add_argument("--vae", help="what decodes latents: a diffusers AutoencoderKL's folder or hub name")
    how.add_argument("--dtype", choices=DTYPES, help="of the model (default: as it was saved); steps are float32")
    how.add_argument("--device", help="default: cuda where there is one")
    how.add_argument("--batch-size", type=int, default=32)
    for name in ("modulation-cache", "shared-patch-embedding", "cuda-graph"):
        how.add_argument(f"--no-{name}", action="store_true", help="turn this acceleration off")
    where = parser.add_argument_group("where to")
    where.add_argument("--out", type=Path, help="one picture (default: samples.png, if nothing else is asked for)")
    where.add_argument("--images-dir", type=Path, help="a folder: each image as a PNG")
    where.add_argument("--npz", type=Path, help="the file that FID is measured on; a run that was stopped goes on")


def run(arguments: argparse.Namespace) -> int:
    import torch

    from dit_fast.sample.protocol import ranks

    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if arguments.npz is None:
        return _draw(arguments, device)
    with ranks(device) as own:
        return _draw(arguments, own)


def _draw(arguments: argparse.Namespace, device: str) -> int:
    import torch

    from dit_fast.sample import decode, load_vae, save_grid, save_images, to_uint8

    from ._checkpoint import open_checkpoint

    opened = open_checkpoint(arguments.checkpoint, device)
    for note in opened.notes:
        print(f"note: {note}")
    model = opened.model.to(getattr(torch, arguments.dtype)) if arguments.dtype else opened.model
    if arguments.vae is None and (opened.latents or model.in_channels not in (1, 3)):
        raise ValueError(
            "`--vae` must be given for a model of latents: one of pixels must have 1 or 3 channels, this has"
            f" {model.in_channels}"
        )
    options = _options(arguments, opened)
    sampler = _sampler(model, opened, options, arguments)
    vae = None if arguments.vae is None else load_vae(arguments.vae, device)
    if arguments.npz is not None:
        return _npz(arguments, sampler, options, vae)
    labels, columns, about = _labels(arguments, model.num_classes)
    drawn = sampler(
        labels, seed=arguments.seed, size=_size(arguments), batch_size=arguments.batch_size, progress=True
    )
    images = to_uint8(drawn if vae is None else decode(vae, drawn)).cpu()
    if arguments.images_dir is not None:
        save_images(images, arguments.images_dir)
        print(f"{len(images)} images in {arguments.images_dir}/")
    if arguments.out is not None or arguments.images_dir is None:
        out = arguments.out or Path("samples.png")
        save_grid(images, out, columns)
        print(f"{len(images)} images of {opened.where}, {about}: {out}")
    return 0


def _labels(arguments: argparse.Namespace, num_classes: int) -> tuple[Any, int | None, str]:
    """What to ask the sampler for, how many images to put in a row of the picture, and what the rows are."""
    if num_classes == 0:
        if arguments.classes is not None:
            raise ValueError(f"`--classes` must be left out: the model has no labels, got {arguments.classes}")
        return 16 if arguments.count is None else arguments.count, None, "of no class"
    if arguments.count is not None:
        raise ValueError("`--count` is for `--npz` and for models without labels; see --per-class")
    asked = arguments.classes or [str(k) for k in range(min(10, num_classes))]
    labels = [int(name) if name.isdecimal() else name for name in asked for _ in range(arguments.per_class)]
    return labels, arguments.per_class, f"a row for each of {', '.join(asked)}"


def _options(arguments: argparse.Namespace, opened: Any) -> dict[str, Any]:
    """Of the sampler, in JSON values, for a .npz remembers them."""
    model, method = opened.model, arguments.sampler or DEFAULT[opened.objective]
    guidable = model.y_embedder is not None and model.y_embedder.dropout_prob > 0
    scale = (4.0 if guidable else 1.0) if arguments.cfg_scale is None else arguments.cfg_scale
    return {
        "method": method,
        "steps": int(arguments.steps) if arguments.steps.isdecimal() else arguments.steps,
        "eta": arguments.eta,
        "cfg_scale": scale,
        "cfg_interval": arguments.cfg_interval,
        "cfg_channels": "all" if arguments.cfg_channels == "all" else _integer(arguments.cfg_channels),
        "clip_denoised": arguments.vae is None and method in ("ddpm", "ddim"),
    }


def _sampler(model: Any, opened: Any, options: dict[str, Any], arguments: argparse.Namespace) -> Any:
    from dit_fast.sample import Sampler
    from dit_fast.sample.schedulers import scheduler_named

    method, ours = options["method"], options["method"] in ("ddpm", "ddim")
    if not ours and method not in ("euler", "heun"):
        method = scheduler_named(method, opened.noise_schedule)
    off = {
        name: False for name in ("modulation_cache", "shared_patch_embedding", "cuda_graph")
        if getattr(arguments, f"no_{name}")
    }  # fmt: skip
    schedule = {"noise_schedule": opened.noise_schedule} if ours else {}
    return Sampler(model, **{**options, **schedule, **off, "method": method}, class_names=opened.class_names)


def _npz(arguments: argparse.Namespace, sampler: Any, options: dict[str, Any], vae: Any) -> int:
    from dit_fast.sample.protocol import protocol_labels, sample_to_npz

    if arguments.count is None or arguments.classes is not None:
        raise ValueError("`--npz` must come with --count, how many images, and without --classes: see --labels")
    labels = protocol_labels(arguments.count, sampler.model.num_classes, arguments.labels, arguments.seed)
    file = sample_to_npz(
        sampler, arguments.count, arguments.npz, labels=labels, seed=arguments.seed, size=_size(arguments), vae=vae,
        batch_size=arguments.batch_size, plan=options,
    )  # fmt: skip
    print(f"{arguments.count} images: {file}")
    return 0


def _size(arguments: argparse.Namespace) -> tuple[int, int] | None:
    return None if arguments.size is None else tuple(arguments.size)


def _integer(text: str) -> int:
    if not text.isdecimal():
        raise ValueError(f"`--cfg-channels` must be a number or all, got {text!r}")
    return int(text)
