# SPDX-License-Identifier: Apache-2.0
"""What only a GPU can tell of the sampler: steps in CUDA graphs compute what they do without, and wait for nothing."""

import copy
import gc
import threading
import warnings

import pytest
import torch

from dit_fast.ops import use_backend
from dit_fast.parity import compare, no_tf32
from dit_fast.sample import Sampler
from dit_fast.sample import plan as plans
from tests.models.live import live_model

pytestmark = pytest.mark.skipif(not torch.cuda.device_count(), reason="there is no GPU here: `make gpu` on one")

METHODS = {
    "ddpm": dict(method="ddpm", steps=5, cfg_scale=2.0),
    "unguided": dict(method="ddpm", steps=5),
    "ddim": dict(method="ddim", steps=5, eta=0.5, cfg_scale=2.0, cfg_interval=(200, 800)),
    "euler": dict(method="euler", steps=4, cfg_scale=2.0),
    "heun": dict(method="heun", steps=4, cfg_scale=2.0, cfg_interval=(200, 800)),
}
OFF = dict(modulation_cache=False, shared_patch_embedding=False, cuda_graph=False)


def small(**kwargs):
    return live_model(**{"depth": 2, **kwargs}).cuda()


def captured(sampler):
    return {graph for plan in sampler._plans.values() for graph in plan.graphs.values()}


def assert_exact(model, got, labels, options, **call):
    """As near to float64 as the plain loop with the same kernels is."""
    with no_tf32():
        plain = Sampler(model, **options, **OFF)(labels, **call)
    with use_backend("reference"), no_tf32():
        exact = Sampler(copy.deepcopy(model).double(), **options, **OFF)(labels, **call)
    error, theirs, ratio = compare(got, plain, exact, model.pos_embed.dtype)
    assert ratio <= 1, (error, theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", METHODS)
def test_replays_follow_labels_seeds_and_weights(name, dtype):
    model, options = small().to(dtype), METHODS[name]
    sampler = Sampler(model, **options, cuda_graph=True)
    for labels, call in (([1, 2, 3], {}), ([4, 0, 0], dict(seed=7)), ([2, 1, 3, 0, 4], dict(batch_size=3))):
        with no_tf32():
            assert_exact(model, sampler(labels, **call), labels, options, **call)
    graphs = captured(sampler)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.data.mul_(1.05)
    with no_tf32():
        assert_exact(model, sampler([1, 2, 3]), [1, 2, 3], options)
    assert captured(sampler) == graphs  # which read weights where they are


@pytest.mark.parametrize("design", ["adaln", "cross_attention", "in_context"])
def test_other_designs(design):
    model, options = small(conditioning=design), METHODS["ddpm"]
    with no_tf32():
        assert_exact(model, Sampler(model, **options, cuda_graph=True)([1, 2]), [1, 2], options)


@pytest.mark.parametrize("name", ["ddpm", "heun"])
def test_a_chunk_a_step(name, monkeypatch):
    model = small()
    whole = Sampler(model, **METHODS[name])([1, 2, 3])
    monkeypatch.setattr(plans, "NOISE_BYTES", 1)
    torch.testing.assert_close(Sampler(model, **METHODS[name], cache_bytes=1)([1, 2, 3]), whole, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("graph", [True, False])
@pytest.mark.parametrize("name", METHODS)
def test_the_steps_wait_for_nothing(name, graph, monkeypatch):
    """From the moment that labels and noise are on the GPU to the last step; of chunks too."""
    run = Sampler._run
    steps = []

    def watched(self, plan, bar):
        torch.cuda.set_sync_debug_mode("error")
        try:
            steps.append(1)
            return run(self, plan, bar)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(plans, "NOISE_BYTES", 1)
    sampler = Sampler(small(), **METHODS[name], cuda_graph=graph, cache_bytes=1)
    sampler([1, 2, 3])  # a first call loads kernels and tables
    monkeypatch.setattr(Sampler, "_run", watched)
    sampler([3, 2, 1])
    assert steps == [1]


def test_noise_is_the_same_in_any_batch():
    def zero(x, t, y):
        return torch.cat([torch.zeros_like(x), torch.zeros_like(x)], dim=1)

    sampler = Sampler(zero, in_channels=4, num_classes=9, learn_sigma=True, steps=4, device="cuda", cuda_graph=True)
    whole = sampler([0] * 7, size=32)
    assert torch.equal(sampler([0] * 7, size=32, batch_size=2), whole)
    assert torch.equal(sampler([0, 0], seeds=[6, 2], size=32), whole[[6, 2]])


def test_graphs_of_other_kernels_and_of_new_weights():
    model, options = small(), METHODS["ddpm"]
    sampler = Sampler(model, **options)
    first = sampler([1, 2])
    with use_backend("reference"), no_tf32():
        assert_exact(model, sampler([1, 2]), [1, 2], options)
    assert torch.equal(sampler([1, 2]), first)
    model.load_state_dict({k: v * 1.05 for k, v in model.state_dict().items()}, assign=True)
    with no_tf32():
        assert_exact(model, sampler([1, 2]), [1, 2], options)


def test_a_scheduler_of_diffusers():
    diffusers = pytest.importorskip("diffusers")
    model = small()
    kinds = diffusers.DDIMScheduler, diffusers.DPMSolverMultistepScheduler, diffusers.DDPMScheduler
    for kind in kinds:
        options = dict(method=kind(beta_start=1e-4, beta_end=0.02), steps=4, cfg_scale=2.0)
        with no_tf32():
            assert_exact(model, Sampler(model, **options, cuda_graph=True)([1, 2]), [1, 2], options)


def test_autocast_is_not_captured():
    model = small()
    with torch.autocast("cuda", torch.bfloat16):
        with pytest.raises(ValueError, match="`cuda_graph` must be False or None: autocast keeps copies"):
            Sampler(model, steps=2, cuda_graph=True)([1])
        assert Sampler(model, steps=2)([1]).isfinite().all()


def test_memory_is_given_back():
    model = small()

    def held():
        gc.collect()
        torch.cuda.synchronize()
        return torch.cuda.memory_allocated()

    Sampler(model, **METHODS["ddim"])([1, 2])  # libraries' workspaces stay
    before = held()
    sampler = Sampler(model, **METHODS["ddim"])
    for n in (1, 2, 3, 4):
        sampler([1] * n)
    assert held() > before
    sampler.clear()
    assert held() <= before + 2**20  # the schedule's table
    del sampler
    assert held() == before


def test_another_thread_may_allocate_during_a_capture():
    """As a data loader's pinning thread does."""
    stop = threading.Event()

    def allocate():
        while not stop.is_set():
            torch.empty(1 << 20).pin_memory()

    thread = threading.Thread(target=allocate)
    thread.start()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            Sampler(small(), steps=3, cuda_graph=True)([1, 2])
    finally:
        stop.set()
        thread.join()
