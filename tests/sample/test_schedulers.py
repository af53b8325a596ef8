# SPDX-License-Identifier: Apache-2.0
"""diffusers' schedulers, against a loop written as DiTPipeline's is."""

import inspect
import itertools

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)

from dit_fast.diffusion import create_diffusion, create_flow
from dit_fast.sample import Sampler
from dit_fast.sample.noise import stream_seed
from tests.models.live import live_model

SCALE, STEPS, LABELS = 2.0, 4, [1, 3]
LINEAR = dict(beta_start=1e-4, beta_end=0.02, beta_schedule="linear")  # DiT's

KINDS = {
    "ddim": lambda: DDIMScheduler(**LINEAR, clip_sample=False),
    "ddpm": lambda: DDPMScheduler(**LINEAR, clip_sample=False),
    "ddpm-learned": lambda: DDPMScheduler(**LINEAR, clip_sample=False, variance_type="learned_range"),
    "dpm": lambda: DPMSolverMultistepScheduler(**LINEAR),
    "sde": lambda: DPMSolverMultistepScheduler(**LINEAR, algorithm_type="sde-dpmsolver++"),
    "unipc": lambda: UniPCMultistepScheduler(**LINEAR),
    "euler": lambda: EulerDiscreteScheduler(**LINEAR),
    "ancestral": lambda: EulerAncestralDiscreteScheduler(**LINEAR),
    "heun": lambda: HeunDiscreteScheduler(**LINEAR),
    "pndm": lambda: PNDMScheduler(**LINEAR, skip_prk_steps=True),  # keeps the model's outputs of earlier steps
}


def small(**kwargs):
    return live_model(**{"depth": 2, "hidden_size": 64, **kwargs})


def generators():
    return [torch.Generator().manual_seed(stream_seed(0, k)) for k in range(len(LABELS))]


@torch.no_grad()
def pipeline(model, scheduler, keep_variance=False, **options):
    """DiTPipeline's loop, with a generator for each image: [x, x], all channels guided, the variance cut off."""
    chances = generators()
    x = torch.cat([torch.randn(1, 4, 8, 8, generator=g) for g in chances])
    scheduler.set_timesteps(STEPS)
    x = x * scheduler.init_noise_sigma
    y = torch.tensor(LABELS + [5] * len(LABELS))
    if "generator" in inspect.signature(scheduler.step).parameters:
        options["generator"] = chances
    for t in scheduler.timesteps:
        both = scheduler.scale_model_input(torch.cat([x, x]), t)
        out = model(both, t.expand(len(both)), y)
        eps, variance = out[:, :4], out[:, 4:]
        cond, null = eps.chunk(2)
        eps = null + SCALE * (cond - null)
        out = torch.cat([eps, variance[: len(x)]], dim=1) if keep_variance else eps
        x = scheduler.step(out, t, x, return_dict=False, **options)[0]
    return x


@pytest.mark.parametrize("learn_sigma", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_pipelines_loop(kind, learn_sigma):
    if kind == "ddpm-learned" and not learn_sigma:
        pytest.skip("its variance is the model's")
    model = small(learn_sigma=learn_sigma)
    wanted = pipeline(model, KINDS[kind](), keep_variance=kind == "ddpm-learned")
    options = dict(steps=STEPS, cfg_scale=SCALE, cfg_channels="all")
    off = Sampler(model, method=KINDS[kind](), modulation_cache=False, shared_patch_embedding=False, **options)
    for sampler in (off, Sampler(model, method=KINDS[kind](), **options)):
        for _ in range(2):  # a scheduler has a state, a sampler none
            torch.testing.assert_close(sampler(LABELS), wanted, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("kind", ["ddpm", "ancestral", "sde", "unipc"])
def test_image_k_is_the_same_in_any_batch(kind):
    sampler = Sampler(small(), method=KINDS[kind](), steps=STEPS, cfg_scale=SCALE)
    whole = sampler([1, 3, 2])
    torch.testing.assert_close(sampler([1, 3, 2], batch_size=1), whole, rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(sampler([2], seeds=[2]), whole[2:], rtol=2e-3, atol=2e-3)


def test_a_ddim_scheduler_at_our_own_spacing_is_our_ddim():
    scheduler = DDIMScheduler(**LINEAR, clip_sample=False, set_alpha_to_one=True)
    model = small()
    ours = Sampler(model, method="ddim", steps="ddim10", cfg_scale=SCALE)(LABELS)
    assert create_diffusion("ddim10").timestep_map[1] == 100
    torch.testing.assert_close(
        Sampler(model, method=scheduler, steps=10, cfg_scale=SCALE)(LABELS), ours, rtol=2e-3, atol=2e-3
    )


def test_eta_is_given_to_a_scheduler_that_takes_one():
    model = small()
    sampler = Sampler(model, method=KINDS["ddim"](), steps=STEPS, cfg_scale=SCALE, cfg_channels="all", eta=0.7)
    wanted = pipeline(model, KINDS["ddim"](), eta=0.7)
    torch.testing.assert_close(sampler(LABELS), wanted, rtol=2e-3, atol=2e-3)
    with pytest.raises(ValueError, match="`eta` must be 0: EulerDiscreteScheduler takes none, got 0.7"):
        Sampler(model, method=KINDS["euler"](), steps=STEPS, eta=0.7)


@pytest.mark.parametrize("learn_sigma", [False, True])
def test_schedulers_of_flows_see_the_model_in_their_convention(learn_sigma):
    """FlowMatchEuler is Euler's method between its own noise levels 1 - t, for -v."""
    model = small(learn_sigma=learn_sigma)
    x = torch.randn(1, 4, 8, 8, generator=generators()[0])
    sampler = Sampler(model, method=FlowMatchEulerDiscreteScheduler(), steps=STEPS)
    times = 1 - torch.tensor(sampler._chain.levels) / 1000
    assert times[0] == 0 and torch.equal(sampler._chain.times, times)
    got = sampler([1])
    for t, t_next in itertools.pairwise([*times, torch.tensor(1.0)]):
        call = lambda x, t: model(x, t, torch.tensor([1]))  # noqa: E731
        x = create_flow().flow_step(call, x, t[None], t_next[None])["sample"].detach()
    torch.testing.assert_close(got, x, rtol=2e-3, atol=2e-3)


def test_a_guidance_interval():
    model, rows = small(), []
    model.blocks[0].register_forward_hook(lambda m, a, out: rows.append(len(out[0])))
    sampler = Sampler(model, method=KINDS["ddim"](), steps=4, cfg_scale=2.0, cfg_interval=(400, 600))
    assert [t.item() for t in sampler._chain.scheduler.timesteps] == [750, 500, 250, 0]
    sampler([1])
    assert rows == [1, 2, 1, 1]


def test_a_variance_that_a_scheduler_would_misread():
    scheduler = DPMSolverMultistepScheduler(**LINEAR, variance_type="learned_range")  # takes three channels for eps
    with pytest.raises(ValueError, match="DPMSolverMultistepScheduler with a learned variance takes up to 3 channels"):
        Sampler(small(), method=scheduler, steps=4)
    pixels = Sampler(small(in_channels=3), method=scheduler, steps=4, cfg_scale=2.0)(LABELS)
    plain = Sampler(small(in_channels=3), method=KINDS["dpm"](), steps=4, cfg_scale=2.0)(LABELS)
    assert torch.equal(pixels, plain)
