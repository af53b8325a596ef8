# SPDX-License-Identifier: Apache-2.0
"""The sampler against the plain loops: to the bit where it does the same work, to rounding where it saves some."""

import copy

import pytest
import torch

from dit_fast.diffusion import create_diffusion, with_guidance
from dit_fast.models import CONDITIONING
from dit_fast.parity import compare
from dit_fast.sample import Sampler, sample
from dit_fast.sample import plan as plans
from dit_fast.sample.noise import stream_seed
from tests.models.live import live_model

from .reference import images, one_image

OFF = dict(modulation_cache=False, shared_patch_embedding=False)
LABELS = [3, 0, 3]


def small(**kwargs):
    return live_model(**{"depth": 2, "hidden_size": 64, **kwargs})


def assert_exact(model, labels, options, size=(8, 8), **switches):
    """The sampler's error against float64 is at most what the plain loop's calibrates."""
    wanted = dict(options)
    wanted["scale"] = wanted.pop("cfg_scale", 1.0)
    wanted["channels"] = wanted.pop("cfg_channels", 3)
    plain = images(model, labels, size=size, **wanted)
    exact = images(copy.deepcopy(model).double(), labels, size=size, **wanted)
    got = Sampler(model, **options, **switches)(labels, size=size)
    assert got.dtype == torch.float32 and plain.std() > 0.1
    error, _, ratio = compare(got, plain, exact, model.pos_embed.dtype)
    assert ratio <= 1, (error, ratio)
    return got


def test_with_every_acceleration_off_it_is_the_plain_loop_to_the_bit():
    model = small()
    for scale in (1.0, 3.0):
        generator = torch.Generator().manual_seed(stream_seed(7, 0))
        noise = torch.randn(1, 4, 8, 8, generator=generator)
        call = model if scale == 1 else with_guidance(model, scale, 5)
        wanted = create_diffusion("5").p_sample_loop(
            call, noise.shape, noise, False, model_kwargs={"y": torch.tensor([2])}, generator=generator
        )
        assert torch.equal(Sampler(model, steps=5, cfg_scale=scale, **OFF)([2], seed=7), wanted)
        assert torch.equal(one_image(model, 2, 0, steps=5, scale=scale, seed=7), wanted)  # the other tests' yardstick


@pytest.mark.parametrize(
    "options",
    [
        dict(method="ddim", cfg_scale=2.0, cfg_channels="all"),
        dict(method="ddim", eta=1.0),
        dict(method="ddpm", clip=True),
        dict(method="euler", cfg_scale=2.0),
        dict(method="heun", cfg_scale=2.0),
        dict(method="heun"),
    ],
    ids=lambda o: "-".join(map(str, o.values())),
)
def test_every_method_is_its_plain_loop(options):
    model = small()
    renamed = {"cfg_scale": "scale", "cfg_channels": "channels"}
    wanted = one_image(model, 1, 4, **{renamed.get(k, k): v for k, v in options.items()})
    clip = {"clip_denoised": True} if options.pop("clip", False) else {}
    for switches in (OFF, {}):
        got = Sampler(model, steps=4, **options, **clip, **switches)([1], seeds=[4])
        if switches:
            assert torch.equal(got, wanted)
        else:
            torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-3)  # which work is done; how exact: below


@pytest.mark.parametrize("design", CONDITIONING)
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_accelerated_is_as_exact_as_plain(design, scale):
    assert_exact(small(conditioning=design), LABELS, dict(steps=4, cfg_scale=scale))


@pytest.mark.parametrize("learn_sigma", [True, False])
def test_in_bfloat16_the_chain_stays_float32(learn_sigma):
    model = small(learn_sigma=learn_sigma).bfloat16()
    assert_exact(model, LABELS, dict(steps=4, cfg_scale=3.0))


def test_guidance_is_not_rounded_to_bfloat16():
    """cond - null is one bit of bfloat16; half of it is none."""

    def model(x, t, y):
        return torch.where(y == 3, 1.0, 1 + 2**-7).view(-1, 1, 1, 1).expand_as(x).to(torch.bfloat16)

    options = dict(method="euler", steps=1, dtype=torch.bfloat16, in_channels=1, num_classes=3, learn_sigma=False)
    got = Sampler(model, cfg_scale=2.5, **options)([0], size=2) - Sampler(model, **options)([0], size=2)
    torch.testing.assert_close(got, torch.full((1, 1, 2, 2), 1.5 * 2**-7), rtol=1e-4, atol=0)


def test_flows_heun_reads_the_next_steps_modulations():
    model = small(learn_sigma=False)
    for cache_bytes in (1 << 30, 1):  # 1: a chunk a step
        assert_exact(model, LABELS, dict(method="heun", steps=3, cfg_scale=2.0), cache_bytes=cache_bytes)


def test_other_sizes():
    for size in ((4, 12), (8, 8)):
        assert_exact(small(), LABELS[:2], dict(steps=3, cfg_scale=2.0), size=size)


@pytest.mark.parametrize("design", ["adaln_zero", "in_context"])
def test_unconditional(design):
    model = small(num_classes=0, conditioning=design)
    wanted = images(model, [None, None], steps=4)
    torch.testing.assert_close(Sampler(model, steps=4)(2), wanted, rtol=1e-3, atol=1e-3)
    assert torch.equal(Sampler(model, steps=4, **OFF)(1), wanted[:1])


def test_steps_at_a_time_and_labels_at_a_time_change_nothing(monkeypatch):
    model, labels = small(), [0, 1, 2, 3, 4, 0, 1]
    rows = []
    model.blocks[0].adaLN_modulation.register_forward_hook(lambda m, a, out: rows.append(len(out)))
    whole = Sampler(model, steps=6, cfg_scale=2.0)(labels, batch_size=3)
    assert rows[1:] == [6 * 6]  # after one to learn the width of a row: six steps, five labels and the null label
    width = (6 * 2 + 2) * 64 * 4
    rows.clear()
    # four rows a step (three labels of a batch and the null label), room for two steps
    parts = Sampler(model, steps=6, cfg_scale=2.0, cache_bytes=8 * width)(labels, batch_size=3)
    assert rows[1:] == [8, 8, 8, 8, 8, 8, 8, 4]  # two labels in the last batch: four steps at once
    torch.testing.assert_close(parts, whole, rtol=1e-3, atol=1e-3)
    monkeypatch.setattr(plans, "NOISE_BYTES", 1)  # a step at a time
    again = Sampler(model, steps=6, cfg_scale=2.0)(labels, batch_size=3)
    assert torch.equal(again, whole)


def test_weights_that_regress_modulations_are_read_before_the_steps_only():
    model = small()
    asked, embedded = [], []
    model.final_layer.adaLN_modulation.register_forward_hook(lambda m, a, out: asked.append(len(out)))
    model.x_embedder.register_forward_hook(lambda m, a, out: embedded.append(len(out)))
    Sampler(model, steps=5, cfg_scale=2.0)([1, 1, 4])
    assert asked == [1, 5 * 3] and embedded == [3] * 5
    asked.clear()
    embedded.clear()
    Sampler(model, steps=5, cfg_scale=2.0, **OFF)([1, 1, 4])
    assert asked == [6] * 5 and embedded == [6] * 5


def test_a_guidance_interval_runs_the_rest_without_the_null_half():
    model = small()
    timesteps = create_diffusion("5").timestep_map[::-1]  # 999, 749, 500, 250, 0
    for switches in (OFF, {}):
        rows = []
        handle = model.blocks[0].register_forward_hook(lambda m, a, out: rows.append(len(out[0])))  # noqa: B023
        got = Sampler(model, steps=5, cfg_scale=3.0, cfg_interval=(250, 800), **switches)([1, 2])
        handle.remove()
        assert rows == [4 if 250 <= t <= 800 else 2 for t in timesteps]

        def call(x, t, y):
            guided = 250 <= int(t[0]) <= 800
            return with_guidance(model, 3.0, 5)(x, t, y) if guided else model(x, t, y)

        generator = torch.Generator().manual_seed(stream_seed(0, 0))
        noise = torch.randn(1, 4, 8, 8, generator=generator)
        wanted = create_diffusion("5").p_sample_loop(
            call, noise.shape, noise, False, model_kwargs={"y": torch.tensor([1])}, generator=generator
        )
        torch.testing.assert_close(got[:1], wanted, rtol=1e-3, atol=1e-3)
    rows = []
    model.blocks[0].register_forward_hook(lambda m, a, out: rows.append(len(out[0])))
    Sampler(model, method="heun", steps=4, cfg_scale=3.0, cfg_interval=(250, 800))([1])
    assert rows == [1, 2, 2, 2, 2, 2, 2, 1]  # noise levels 1000, 750 | 750, 500 | 500, 250 | 250, 0


def test_the_function_is_the_class_used_once():
    model = small()
    y = torch.tensor([0, 4])
    one = sample(model, y, steps=3, cfg_scale=2.0, sampler="ddim", seed=3)
    assert torch.equal(one, Sampler(model, method="ddim", steps=3, cfg_scale=2.0)(y, seed=3))
    assert not one.requires_grad and not one.is_inference()


def test_no_images():
    assert Sampler(small(), steps=2)([]).shape == (0, 4, 8, 8)
