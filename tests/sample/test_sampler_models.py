# SPDX-License-Identifier: Apache-2.0
"""Which models a sampler takes, what it does where it cannot accelerate, and weights that change between calls."""

import copy
import logging

import pytest
import torch
from torch import nn

import dit_fast
from dit_fast.models import DiT
from dit_fast.ops import use_backend
from dit_fast.sample import Sampler
from dit_fast.sample import plan as plans
from dit_fast.sample import sampler as samplers
from tests.integrations.lookalikes import dit_like
from tests.models.live import live_model

from .reference import images

SWITCHES = ("modulation_cache", "shared_patch_embedding", "cuda_graph")


def small(**kwargs):
    return live_model(**{"depth": 2, "hidden_size": 64, **kwargs})


class Subclass(DiT):
    def forward(self, x, t, y=None):
        return super().forward(x, t, y) * 2


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


def with_hook():
    model = small()
    model.register_forward_hook(lambda m, a, out: out * 2)
    return model


def of_subclass():
    model = small()
    model.__class__ = Subclass
    return model


def replaced_forward():
    model = small()
    forward = model.forward
    model.forward = lambda x, t, y=None: forward(x, t, y) * 2
    return model


@pytest.mark.parametrize(
    "make,reason",
    [
        (with_hook, "hooks on the model watch its forward"),
        (of_subclass, "Subclass has a forward of its own"),
        (replaced_forward, "DiT has a forward of its own"),
    ],
)
def test_what_a_model_adds_to_its_forward_is_kept(make, reason, caplog):
    def doubled(x, t, y):
        return small()(x, t, y) * 2

    doubled.pos_embed, doubled.in_channels, doubled.num_classes, doubled.learn_sigma = small().pos_embed, 4, 5, True
    with caplog.at_level(logging.INFO, logger="dit_fast"):
        got = Sampler(make(), steps=2, cfg_scale=2.0)([1, 2])
    assert f"sampling without modulation_cache: {reason}" in caplog.text
    assert "sampling without cuda_graph: the model is on cpu" in caplog.text
    close(got, images(doubled, [1, 2], steps=2, scale=2.0))
    for name, why in zip(SWITCHES, (reason, reason, "the model is on cpu"), strict=True):
        with pytest.raises(ValueError, match=f"`{name}` must be False or None: {why}"):
            Sampler(make(), steps=2, **{name: True})([1])


def test_a_compiled_model():
    model = small(depth=1)
    calls = []

    def backend(graph, inputs):
        calls.append(1)
        return graph.forward

    compiled = torch.compile(model, backend=backend)
    close(Sampler(compiled, steps=3, cfg_scale=2.0)([1, 2]), Sampler(model, steps=3, cfg_scale=2.0)([1, 2]))
    assert calls


def test_a_patched_model_of_somebody_else():
    model = dit_like().eval()
    options = dict(method="euler", steps=3, in_channels=4, num_classes=4, learn_sigma=False, cfg_scale=2.0)
    wanted = Sampler(model, **options)([1, 2], size=8)
    assert dit_fast.patch(model).replaced
    close(Sampler(model, **options)([1, 2], size=8), wanted)


def test_sharded_weights(tmp_path):
    dist = pytest.importorskip("torch.distributed")
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    wanted = Sampler(small(), steps=2, cfg_scale=2.0)([1, 2])
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model, mesh = small(), init_device_mesh("cpu", (1,))
        fully_shard(model, mesh=mesh)
        close(Sampler(model, steps=2, cfg_scale=2.0)([1, 2]), wanted)
        with pytest.raises(ValueError, match="`modulation_cache` must be False or None"):
            Sampler(model, steps=2, modulation_cache=True)
    finally:
        dist.destroy_process_group()


def test_a_function_says_nothing_of_itself():
    def model(x, t, y):
        return x

    with pytest.raises(ValueError, match="`in_channels` must be given: function has no attribute that says it"):
        Sampler(model)
    sampler = Sampler(model, in_channels=2, num_classes=3, learn_sigma=False, steps=2)
    with pytest.raises(ValueError, match="`size` must be given"):
        sampler([1])
    assert sampler([1], size=(3, 5)).shape == (1, 2, 3, 5)


def test_what_a_function_returns_is_checked():
    sampler = Sampler(lambda x, t, y: x, in_channels=2, num_classes=3, learn_sigma=True, steps=2)
    with pytest.raises(ValueError, match=r"`model` must return a tensor \(1, 4, 3, 3\), got \(1, 2, 3, 3\)"):
        sampler([1], size=3)
    sampler = Sampler(lambda x, t, y: (x,), in_channels=2, num_classes=3, learn_sigma=False, steps=2, cfg_scale=2.0)
    with pytest.raises(ValueError, match=r"`model` must return a tensor \(2, 2, 3, 3\), got tuple"):
        sampler([1], size=3)


def test_modes_of_one_call_do_not_reach_the_next():
    sampler = Sampler(small(), steps=2, cfg_scale=2.0)
    with torch.inference_mode():
        first = sampler([1, 2])
    assert not first.is_inference()
    with torch.autocast("cpu", torch.bfloat16):
        assert not torch.equal(sampler([1, 2]), first)
    assert torch.equal(sampler([1, 2]), first)


def test_a_model_in_training_would_drop_labels():
    with pytest.raises(ValueError, match="`model` must be in evaluation mode"):
        Sampler(small().train())
    sampler = Sampler(small(), steps=2)
    sampler.model.train()
    with pytest.raises(ValueError, match="`model` must be in evaluation mode"):
        sampler([1])


def in_place(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)


def unseen(model):
    for parameter in model.parameters():
        parameter.data.mul_(1.1)  # no version is counted


def loaded(model):
    model.load_state_dict({k: v * 1.1 for k, v in model.state_dict().items()})


def assigned(model):
    model.load_state_dict({k: v * 1.1 for k, v in model.state_dict().items()}, assign=True)


def cast(model):
    model.bfloat16()


@pytest.mark.parametrize("change", [in_place, unseen, loaded, assigned, cast])
def test_weights_that_change_between_calls_are_seen(change):
    model = small()
    sampler = Sampler(model, steps=3, cfg_scale=2.0)
    before = sampler([1, 2])
    change(model)
    after = sampler([1, 2])
    assert torch.equal(after, Sampler(copy.deepcopy(model), steps=3, cfg_scale=2.0)([1, 2]))
    assert not torch.equal(after, before)


class Replay:
    """A CUDA graph's stand-in: the work, as it was recorded."""

    def __init__(self, work):
        self.work = work

    def replay(self):
        self.work()


@pytest.fixture
def captured(monkeypatch):
    """Plans capture, on the CPU: with warm-ups that spoil what they may."""
    log = []

    def record(self, work):
        self._warm_up(work)
        self.x.fill_(float("nan"))
        log.append(self)
        return Replay(work)

    monkeypatch.setattr(plans.Plan, "_captured", record)
    monkeypatch.setattr(samplers, "why_uncaptured", lambda model, device, asked: None)
    return log


def test_captured_steps_are_the_same_work(captured, monkeypatch):
    model = small()
    options = dict(steps=4, cfg_scale=2.0, cfg_interval=(200, 800))
    sampler, again = Sampler(model, **options), Sampler(model, **options, cuda_graph=False)
    assert torch.equal(sampler([1, 2, 3], batch_size=2), again([1, 2, 3], batch_size=2))
    assert len(captured) == 2 * 2  # two shapes, guided and not
    assert torch.equal(sampler([4, 0, 1], batch_size=2, seed=5), again([4, 0, 1], batch_size=2, seed=5))
    assert len(captured) == 2 * 2
    in_place(model)
    assert torch.equal(sampler([1, 2], batch_size=2), again([1, 2], batch_size=2))
    assert len(captured) == 2 * 2  # graphs read weights where they are
    with use_backend("reference"):
        sampler([1, 2])
    assert len(captured) == 3 * 2  # other kernels
    model.to(torch.float64)
    sampler([1, 2])
    assert len(captured) == 4 * 2
    sampler([1, 2, 3, 4, 0])
    assert len(captured) == 5 * 2


def test_graphs_of_a_smaller_table_are_dropped(captured):
    model = small()
    sampler = Sampler(model, steps=3, cfg_scale=2.0)
    sampler([1, 1, 1, 1], batch_size=2)  # rows for a batch's two labels
    assert len(captured) == 1
    got = sampler([0, 1, 2, 3], batch_size=2)  # for four
    assert len(captured) == 2
    assert torch.equal(got, Sampler(model, steps=3, cfg_scale=2.0, cuda_graph=False)([0, 1, 2, 3], batch_size=2))


def test_buffers_are_kept_for_two_shapes_and_given_back():
    sampler = Sampler(small(), steps=2)
    for n in (1, 2, 3):
        sampler([1] * n)
    assert len(sampler._plans) == 2
    sampler.clear()
    assert not sampler._plans and sampler._table is None


@pytest.mark.parametrize(
    "options,message",
    [
        (dict(method="dpm"), "`method` must be 'ddpm', 'ddim', 'euler', 'heun' or a scheduler of diffusers, got 'dpm'"),
        (dict(steps=0), "timestep_respacing: expected 1 to 1000 steps"),
        (dict(method="euler", steps="ddim50"), "`steps` must be a number of 1 or more for this method, got 'ddim50'"),
        (dict(method="heun", eta=0.5), "`eta` must be 0 for 'heun', got 0.5"),
        (dict(eta=0.5), "`eta` must be 0 to 1 for 'ddim' and 0 for 'ddpm', got 0.5"),
        (dict(method="ddim", eta=1.5), "`eta` must be 0 to 1 .* got 1.5"),
        (dict(method="euler", clip_denoised=True), "`clip_denoised` is for 'ddpm' and 'ddim'"),
        (dict(cfg_interval=(300, 200)), r"`cfg_interval` must be \(low, high\) within 0 to 1000, got \(300, 200\)"),
        (dict(cfg_scale=2.0, model=small(num_classes=0)), "`cfg_scale` must be 1: the model has no labels"),
        (dict(cfg_scale=2.0, model=small(class_dropout_prob=0.0)), "must be 1: the model has no null label"),
        (dict(cfg_scale=2.0, cfg_channels=9), "cfg_channels: expected 'all', 3 or a count"),
    ],
    ids=lambda o: "-".join(f"{k}" for k in o) if isinstance(o, dict) else "",
)
def test_what_is_wrong_is_said(options, message):
    model = options.pop("model", None) or small()
    with pytest.raises(ValueError, match=message):
        Sampler(model, **{"steps": 2, **options})([1])


def test_batch_size():
    with pytest.raises(ValueError, match="`batch_size` must be 1 or more, got 0"):
        Sampler(small(), steps=2)([1], batch_size=0)


def test_hooks_of_layers_inside_still_run():
    model, seen = small(), []
    model.blocks[1].register_forward_hook(lambda m, a, out: seen.append(1))
    model.y_embedder.register_forward_hook(lambda m, a, out: out * 0)
    got = Sampler(model, steps=3)([1, 2])
    assert len(seen) == 3
    nn.init.zeros_(model.y_embedder.embedding_table.weight)
    assert torch.equal(Sampler(model, steps=3)([3, 4]), got)
