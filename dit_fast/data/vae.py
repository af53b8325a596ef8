# SPDX-License-Identifier: Apache-2.0
"""A diffusers AutoencoderKL: where it is, which one it is, and what it makes of images. Loaded to encode, never to
train. N batch, C channels of latents, H W pixels, h w latents."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def load_vae(name: str) -> Any:
    """The AutoencoderKL, float32, in evaluation mode: of a folder, of a pipeline's folder, or of the hub.

    Raises:
        ValueError: it is none, or one that scales each channel of its latents by itself.
        ModuleNotFoundError: diffusers is not installed.
    """
    try:
        from diffusers import AutoencoderKL
    except ModuleNotFoundError as missing:
        raise ModuleNotFoundError("a VAE needs diffusers: pip install 'dit_fast[diffusers]'") from missing

    inner = Path(name) / "vae"
    try:
        place = str(inner) if (inner / "config.json").is_file() else name
        vae = AutoencoderKL.from_pretrained(place, low_cpu_mem_usage=False)  # else it warns where accelerate is not
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(f"`vae`: no AutoencoderKL can be loaded from {name!r}: {error}") from error
    if getattr(vae.config, "latents_mean", None) is not None:
        raise ValueError(f"`vae` must have one scale for all channels of its latents, {name} has `latents_mean`")
    return vae.eval().requires_grad_(False)


def fingerprint(vae: Any) -> str:
    """SHA-256 of weights (names, shapes, bytes) and scale: what makes two VAEs' latents different.

    The configuration is left out, for it gains entries with diffusers' versions.
    """
    digest = hashlib.sha256(f"{scale_of(vae)}".encode())
    for name, weight in sorted(vae.state_dict().items()):
        weight = weight.detach().cpu().float().contiguous()
        digest.update(f"{name} {tuple(weight.shape)}".encode())
        digest.update(weight.numpy())
    return digest.hexdigest()


def scale_of(vae: Any) -> tuple[float, float]:
    """(factor, shift): the model sees (latent - shift) * factor."""
    return float(vae.config.scaling_factor), float(getattr(vae.config, "shift_factor", None) or 0.0)


def latent_shape(vae: Any, image_size: int) -> tuple[int, int, int]:
    """(C, h, w) of the latents of square images."""
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    if image_size % factor:
        raise ValueError(f"`image_size` must be a multiple of {factor}, pixels a latent of this VAE, got {image_size}")
    return vae.config.latent_channels, image_size // factor, image_size // factor


@contextmanager
def exact() -> Iterator[None]:
    """Convolutions without TF32, of algorithms that give the same bits each time; one thread for the CPU's sums.

    The number of threads may decide in which order numbers are added, so one is the number that any machine has.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            yield
    finally:
        torch.set_num_threads(threads)


@torch.no_grad()
def posterior(vae: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (N, C, h, w) float32, not scaled, of images (N, 3, H, W) on the VAE's device."""
    distribution = vae.encode(images).latent_dist
    return distribution.mean.float(), (0.5 * distribution.logvar.float()).exp()
