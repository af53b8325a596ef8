# SPDX-License-Identifier: Apache-2.0
"""Images from a trained model. N batch, C channels, H W image."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from dit_fast.diffusion import create_diffusion, with_guidance
from dit_fast.models import DiT


@torch.no_grad()
def sample(
    model: DiT,
    labels: Tensor,
    *,
    steps: int = 250,
    cfg_scale: float = 1.0,
    cfg_channels: int | Literal["all"] = 3,
    sampler: Literal["ddpm", "ddim"] = "ddpm",
    clip_denoised: bool = False,
    seed: int = 0,
    batch_size: int = 256,
    progress: bool = False,
) -> Tensor:
    """Draw one image a label.

    Args:
        model: a trained DiT with labels, in evaluation mode.
        labels: (N,) integer classes, on the model's device.
        steps: of the chain of 1000, evenly spaced from first to last.
        cfg_scale: classifier-free guidance; 1 samples without (and at half the cost).
        cfg_channels: see `DiT.forward_with_cfg`.
        sampler: "ddpm" (ancestral) or "ddim" (eta 0).
        clip_denoised: keep predictions of the clean image in [-1, 1]: for pixels, not for latents.
        seed: all noise; the same seed gives the same images for the same batch size.

    Returns:
        (N, C, H, W) at the size the model was trained for, in float32.
    """
    if sampler not in ("ddpm", "ddim"):
        raise ValueError(f"sample: `sampler` must be 'ddpm' or 'ddim', got {sampler!r}")
    if model.y_embedder is None:
        raise ValueError("sample: `model` must have labels, this one is unconditional; use p_sample_loop directly")
    if cfg_scale != 1.0 and model.y_embedder.dropout_prob == 0:
        raise ValueError("sample: `cfg_scale` must be 1: the model has no null label to guide away from")
    diffusion = create_diffusion(str(steps), learn_sigma=model.learn_sigma)
    loop = diffusion.ddim_sample_loop if sampler == "ddim" else diffusion.p_sample_loop
    generator = torch.Generator(device=labels.device).manual_seed(seed)
    height, width = (size * model.patch_size for size in model.grid)
    dtype = model.x_embedder.proj.weight.dtype

    def in_own_dtype(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return model(x.to(dtype), t, y)  # the chain itself stays float32

    images = []
    for y in labels.split(batch_size):
        noise = torch.randn(
            (len(y), model.in_channels, height, width), device=labels.device, generator=generator
        )
        predict: Callable[..., Tensor] = in_own_dtype
        if cfg_scale != 1.0:
            predict = with_guidance(in_own_dtype, cfg_scale, model.num_classes, cfg_channels)
        images.append(
            loop(
                predict, noise.shape, noise, clip_denoised, model_kwargs={"y": y}, progress=progress,
                generator=generator,
            )
        )  # fmt: skip
    return torch.cat(images)


def to_uint8(images: Tensor) -> Tensor:
    """(N, C, H, W) in [-1, 1] -> (N, H, W, C) in 0..255, rounded."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1)
