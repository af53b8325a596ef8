# SPDX-License-Identifier: Apache-2.0
"""From latents to images with a diffusers AutoencoderKL. N batch, C channels, H W image, f the VAE's factor."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dit_fast.data import vae as vaes


def load_vae(path: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Any:
    """A diffusers AutoencoderKL in evaluation mode: of a folder, a pipeline's folder with one in `vae`, or a hub id.

    Raises:
        ModuleNotFoundError: diffusers is not installed.
        ValueError: there is none, or one that scales each channel of its latents by itself.
    """
    vae = vaes.load_vae(str(path)).to(device)
    return vae if dtype == torch.float32 else vae.to(dtype)  # diffusers warns of every cast


@torch.no_grad()
def decode(vae: Any, latents: Tensor, scale: float | None = None, batch_size: int = 16) -> Tensor:
    """latents (N, C, H, W) -> images (N, 3, f*H, f*W) float32, about in [-1, 1].

    vae: an AutoencoderKL; scale: what latents were multiplied by, its own `scaling_factor` (0.18215 for DiT's)
    where None; batch_size: so many at a time.
    """
    channels = vae.config.latent_channels
    if latents.dim() != 4 or latents.shape[1] != channels:
        raise ValueError(f"decode: `latents` must have shape (N, {channels}, H, W), got {tuple(latents.shape)}")
    factor, shift = vaes.scale_of(vae)
    factor = factor if scale is None else scale
    weight = next(vae.parameters())
    images = [
        vae.decode((z / factor + shift).to(weight.device, weight.dtype)).sample.float()
        for z in latents.split(batch_size)
    ]
    return torch.cat(images)
