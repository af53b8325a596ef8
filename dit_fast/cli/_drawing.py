# SPDX-License-Identifier: Apache-2.0
"""What a training run draws to show how far it is. N images, C channels, H W."""

import logging
from typing import Any

import torch
from torch import Tensor

from dit_fast.data import Source
from dit_fast.data.vae import fingerprint
from dit_fast.models import DiT
from dit_fast.sample import Sampler, decode, load_vae
from dit_fast.train import TrainConfig

LOG = logging.getLogger("dit_fast")


class Drawing:
    """Draws with a model: pixels as they are, latents through the VAE that their cache names.

    The same labels and noise each time, so that pictures of one run can be compared. The VAE is loaded at the first
    drawing. Where it cannot be, or is not the one that encoded the data, the first channels of the latents are shown,
    and the logger `dit_fast` says so.

    Raises:
        ValueError: guidance is asked for, and the model will know no null label.
    """

    def __init__(self, config: TrainConfig, source: Source) -> None:
        classes = source.num_classes if config.num_classes is None else config.num_classes
        if classes and config.class_dropout_prob == 0 and config.sample_scale != 1:
            raise ValueError(
                "train: `sample_scale` must be 1 where `class_dropout_prob` is 0, as there is no null label to guide"
                f" away from, got {config.sample_scale}"
            )
        self.kind, self.manifest = source.kind, source.manifest
        self.vae: Any = None
        self.looked = False

    def __call__(self, model: DiT, labels: Tensor | None, config: TrainConfig) -> Tensor:
        """Images (N, 1 or 3, H, W) in [-1, 1] of labels (N,), or of a model without labels."""
        sampler = Sampler(
            model,
            method="ddpm" if config.objective == "ddpm" else "euler",
            steps=config.sample_steps,
            noise_schedule=config.noise_schedule,
            cfg_scale=1.0 if labels is None else config.sample_scale,
            clip_denoised=self.kind == "pixels" and config.objective == "ddpm",
            cuda_graph=False,  # a new model each time: recording would not pay
        )
        images = sampler(config.sample_count if labels is None else labels, seed=config.seed)
        if self.kind == "pixels":
            return shown(images)
        self._find_vae(images.device)
        return shown(images / 3) if self.vae is None else decode(self.vae, images).clamp(-1, 1)

    def _find_vae(self, device: torch.device) -> None:
        if self.looked:
            return
        self.looked = True
        name = self.manifest.get("vae")
        try:
            if name is None:
                raise ValueError("the data names none")
            vae = load_vae(name, device)
            if fingerprint(vae) != self.manifest.get("vae_sha256"):
                raise ValueError(f"{name} is not the one that encoded the data")
            self.vae = vae
        except (ImportError, OSError, ValueError) as reason:
            LOG.warning("train: samples show the latents' first channels, not images, for want of the VAE: %s", reason)


def shown(images: Tensor) -> Tensor:
    """The first three channels, or the first."""
    return images[:, : 3 if images.shape[1] >= 3 else 1].clamp(-1, 1)
