# SPDX-License-Identifier: Apache-2.0
"""From latents to images with a diffusers AutoencoderKL. N batch, C channels, H W image, f the VAE's factor."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def load_vae(path: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Any:
    """A diffusers AutoencoderKL in evaluation mode: of a folder, a pipeline's folder with one in `vae`, or a hub id.

    Raises:
        ImportError: diffusers is not installed.
        FileNotFoundError: no such folder and no such id.
    """
    try:
        from diffusers import AutoencoderKL
    except ImportError as missing:
        raise ImportError("the VAE needs diffusers: pip install 'dit_fast[diffusers]'") from missing

    inside = {"subfolder": "vae"} if (Path(path) / "vae" / "config.json").is_file() else {}
    try:
        vae = AutoencoderKL.from_pretrained(str(path), torch_dtype=dtype, **inside)
    except OSError as error:
        raise FileNotFoundError(f"load_vae: no AutoencoderKL at {path}: {error}") from error
    return vae.to(device).eval()


@torch.no_grad()
def decode(vae: Any, latents: Tensor, scale: float | None = None, batch_size: int = 16) -> Tensor:
    """latents (N, C, H, W) -> images (N, 3, f*H, f*W) float32, about in [-1, 1].

    scale: what latents were multiplied by; the VAE's own `scaling_factor` (0.18215 for DiT's) where None.
    """
    config = vae.config
    if latents.dim() != 4 or latents.shape[1] != config.latent_channels:
        raise ValueError(
            f"decode: `latents` must have shape (N, {config.latent_channels}, H, W), got {tuple(latents.shape)}"
        )
    scale = config.scaling_factor if scale is None else scale
    shift = getattr(config, "shift_factor", None) or 0.0
    weight = next(vae.parameters())
    images = [
        vae.decode((z / scale + shift).to(weight.device, weight.dtype)).sample.float()
        for z in latents.split(batch_size)
    ]
    return torch.cat(images)
