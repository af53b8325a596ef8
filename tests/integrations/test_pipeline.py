# SPDX-License-Identifier: Apache-2.0
"""DiTPipeline end to end with our transformer: tiny and random, without a network."""

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMScheduler,
    DiTPipeline,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
)

from dit_fast.integrations.diffusers import FastDiTTransformer2DModel

from .test_fast_model import ours, theirs

SCHEDULERS = [DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler, DDPMScheduler]


def vae():
    torch.manual_seed(0)
    return AutoencoderKL(
        block_out_channels=(8, 8), norm_num_groups=2, down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4,
    )  # fmt: skip


def pipeline(transformer, scheduler=DDIMScheduler):
    pipe = DiTPipeline(transformer, vae().to(transformer.dtype), scheduler())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def images(pipe, labels=(1, 3), guidance_scale=4.0, **options):
    generator = torch.Generator().manual_seed(0)
    options = {"num_inference_steps": 3, "output_type": "np", **options}
    return pipe([*labels], guidance_scale, generator, **options).images


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_images_are_those_of_diffusers_own_transformer(scheduler):
    """A model of 1000 classes, the only count DiTPipeline works for otherwise."""
    model = theirs(num_embeds_ada_norm=1000)
    wanted = images(pipeline(model, scheduler))
    got = images(pipeline(FastDiTTransformer2DModel.from_diffusers(model), scheduler))
    assert got.shape == (2, 16, 16, 3) and wanted.std() > 0.01
    np.testing.assert_allclose(got, wanted, atol=1e-4)
    paper = images(pipeline(FastDiTTransformer2DModel.from_diffusers(model, "paper"), scheduler))
    assert np.abs(paper - wanted).max() > 1e-4


def test_another_number_of_classes():
    """Guidance goes away from this model's own null label: as one batch with it written out gives."""
    fast = ours()
    pipe, asked = pipeline(fast), []
    fast.dit.y_embedder.register_forward_pre_hook(lambda module, arguments: asked.append(arguments[0].tolist()))
    guided = images(pipe)
    assert asked == [[1, 3, 5, 5]] * 3
    assert np.abs(guided - images(pipe, guidance_scale=1.0)).max() > 1e-3
    with pytest.raises(IndexError):
        images(pipeline(theirs()))  # diffusers' own
    with pytest.raises(ValueError, match="must be from 0 to 4, 5 or 1000 for none, got 7"):
        images(pipe, labels=(1, 7))


@pytest.mark.parametrize("out_channels", [None, 8])
def test_in_half_precision_with_and_without_variance(out_channels):
    fast = ours(out_channels=out_channels).bfloat16()
    pictures = images(pipeline(fast), output_type="pil")
    assert [picture.size for picture in pictures] == [(16, 16)] * 2


def test_a_pipeline_is_saved_and_loaded_with_it(tmp_path):
    pipe = pipeline(ours())
    pipe.save_pretrained(tmp_path)
    again = DiTPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert type(again.transformer) is FastDiTTransformer2DModel
    np.testing.assert_array_equal(images(again), images(pipe))
