# SPDX-License-Identifier: Apache-2.0
"""A DiTPipeline as people have it, tiny and random: nothing is downloaded, nothing of dit_fast."""

import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel
from torch import nn


def tiny_pipeline() -> DiTPipeline:
    """Yours is DiTPipeline.from_pretrained("facebook/DiT-XL-2-256")."""
    torch.manual_seed(0)
    transformer = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=24, num_layers=3, sample_size=8, out_channels=8
    )
    for block in transformer.transformer_blocks:
        nn.init.normal_(block.norm1.linear.bias, std=0.5)  # so that modulations and gates have something to say
    vae = AutoencoderKL(
        block_out_channels=(8,), norm_num_groups=4, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",), up_block_types=("UpDecoderBlock2D",),
    )  # fmt: skip
    pipe = DiTPipeline(transformer.eval(), vae.eval(), DDIMScheduler())
    pipe.set_progress_bar_config(disable=True)
    return pipe
