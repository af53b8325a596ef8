# SPDX-License-Identifier: Apache-2.0
"""Both samplers on Gaussian data, where every step is affine, so that the output's law is known exactly.

LEGEND: N batch, C channels, H height, W width, K steps; ab = alpha-bar, b = beta, ab' = ab one step earlier.
"""

from __future__ import annotations

import builtins
import importlib
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from dit_fast.diffusion import Diffusion, create_diffusion

MU, S = 0.4, 0.3
SHAPE = (4, 1, 128, 128)


def learned(x: Tensor, t: Tensor) -> Tensor:
    return torch.cat([torch.sin(3 * x) + 0.1, torch.cos(2 * x)], dim=1)


def affine_step(step: Any, kind: str, eta: float) -> tuple[float, float, float]:
    """x_{t-1} = a x_t + b + c z of the exact model: DDPM eq. 11 and each variance; DDIM eqs. 12, 16."""
    if kind == "ddim":
        sigma = eta * math.sqrt(step.posterior_variance)
        rest = math.sqrt(1 - step.ab_prev - sigma**2) / math.sqrt(1 - step.ab)
        x0_weight = math.sqrt(step.ab_prev) - rest * math.sqrt(step.ab)
        return x0_weight * step.gain + rest, x0_weight * step.offset, sigma
    variance = {"small": step.posterior_variance, "large": step.beta, "learned": step.exact_variance}[kind]
    a = step.weight_x0 * step.gain + step.weight_xt
    return a, step.weight_x0 * step.offset, math.sqrt(variance) if step.ab_prev < 1 else 0.0


def law(chain: Any, kind: str, eta: float = 0.0) -> tuple[float, float]:
    """Mean and variance of the sampler's output from N(0, 1) noise."""
    mean, variance = 0.0, 1.0
    for step in reversed(chain.steps):
        a, b, c = affine_step(step, kind, eta)
        mean, variance = a * mean + b, a * a * variance + c * c
    return mean, variance


def make(kind: str, respacing: str) -> Diffusion:
    return create_diffusion(respacing, learn_sigma=kind == "learned", sigma_small=kind == "small")


def sample(
    diffusion: Diffusion, chain: Any, kind: str, eta: float, shape: tuple[int, ...], **kwargs: Any
) -> Tensor:
    if kind == "ddim":
        return diffusion.ddim_sample_loop(chain.eps_model, shape, clip_denoised=False, eta=eta, **kwargs)
    model = chain.learned_model if kind == "learned" else chain.eps_model
    return diffusion.p_sample_loop(model, shape, clip_denoised=False, **kwargs)


KINDS = [("small", 0.0), ("large", 0.0), ("learned", 0.0), ("ddim", 0.0), ("ddim", 0.6), ("ddim", 1.0)]


@pytest.mark.parametrize(("kind", "eta"), KINDS)
@pytest.mark.parametrize("respacing", ["", "50", "ddim20", "3,3,5"])
def test_every_step_is_the_exact_affine_map(
    gaussian_chain: Any, kind: str, eta: float, respacing: str
) -> None:
    """Replay the generator through the affine recursion, in float64: the outputs agree element by element."""
    diffusion = make(kind, respacing)
    chain = gaussian_chain(MU, S, list(diffusion.timestep_map))
    noise = torch.randn(2, 1, 3, 5, dtype=torch.float64)
    out = sample(
        diffusion, chain, kind, eta, noise.shape, noise=noise, generator=torch.Generator().manual_seed(3)
    )
    replay = torch.Generator().manual_seed(3)
    x = noise
    for step in reversed(chain.steps):
        a, b, c = affine_step(step, kind, eta)
        z = torch.randn(noise.shape, dtype=torch.float64, generator=replay)
        x = a * x + b + c * z
    torch.testing.assert_close(out, x, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("kind", "eta"), KINDS)
@pytest.mark.parametrize("respacing", ["50", "250", ""])
def test_gaussian_data_come_back(
    gaussian_chain: Any, generator: torch.Generator, kind: str, eta: float, respacing: str
) -> None:
    """float32 samples have the law's mean and variance (5 standard errors), and so nearly the data's."""
    diffusion = make(kind, respacing)
    chain = gaussian_chain(MU, S, list(diffusion.timestep_map))
    shape = SHAPE if respacing else (4, 1, 64, 64)
    out = sample(diffusion, chain, kind, eta, shape, device="cpu", generator=generator).double()
    n = out.numel()
    mean, variance = law(chain, kind, eta)
    assert out.shape == shape and abs(out.mean().item() - mean) < 5 * math.sqrt(variance / n)
    assert abs(out.var().item() / variance - 1) < 5 * math.sqrt(2 / (n - 1))
    # The law itself is off the data's: in the mean by what is left of x_0 in x_T, sqrt(ab), as the chain
    # starts from N(0, 1); in the variance by discretization, first order in 1/K (25/K is `small`'s).
    assert abs(mean - MU) < math.sqrt(chain.steps[-1].ab) * MU
    assert abs(variance / S**2 - 1) < 25 / diffusion.num_timesteps


@pytest.mark.parametrize("respacing", ["5", "25", "250"])
def test_the_exact_learned_variance_leaves_only_the_last_step(
    gaussian_chain: Any, generator: torch.Generator, respacing: str
) -> None:
    """With the true reverse variance any K gives the data, but for Var(x_0 | x): step 0 adds no noise."""
    diffusion = make("learned", respacing)
    chain = gaussian_chain(MU, S, list(diffusion.timestep_map))
    mean, variance = law(chain, "learned")
    first, last = chain.steps[0], chain.steps[-1]
    lost = S**2 * (1 - first.ab) / first.marginal
    prior = math.sqrt(last.ab)  # the chain starts from N(0, 1), not from q(x_T): off by that much, and shrunk
    assert abs(variance - (S**2 - lost)) < prior * S**2 and abs(mean - MU) < prior * MU
    out = sample(diffusion, chain, "learned", 0.0, SHAPE, generator=generator).double()
    n = out.numel()
    assert abs(out.mean().item() - mean) < 5 * math.sqrt(variance / n)
    assert abs(out.var().item() / variance - 1) < 5 * math.sqrt(2 / (n - 1))


def test_ddim_step_by_hand() -> None:
    """Eq. 12 with numbers: model output 0.5 at x = 2, two steps of a chain, eta = 0 and 0.5."""
    diffusion = create_diffusion("ddim2", learn_sigma=False)
    ab, ab_prev = diffusion.alphas_cumprod[1].item(), diffusion.alphas_cumprod[0].item()
    x = torch.full((1, 1), 2.0, dtype=torch.float64)

    def model(x: Tensor, t: Tensor) -> Tensor:
        return torch.full_like(x, 0.5)

    x0 = (2 - math.sqrt(1 - ab) * 0.5) / math.sqrt(ab)
    out = diffusion.ddim_sample(model, x, torch.tensor([1]), clip_denoised=False)
    assert out["pred_xstart"].item() == pytest.approx(x0, rel=1e-12)
    assert out["sample"].item() == pytest.approx(
        math.sqrt(ab_prev) * x0 + math.sqrt(1 - ab_prev) * 0.5, rel=1e-12
    )
    sigma = 0.5 * math.sqrt((1 - ab_prev) / (1 - ab)) * math.sqrt(1 - ab / ab_prev)
    z = torch.randn(1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).item()
    noisy = diffusion.ddim_sample(
        model, x, torch.tensor([1]), clip_denoised=False, eta=0.5, generator=torch.Generator().manual_seed(1)
    )
    expected = math.sqrt(ab_prev) * x0 + math.sqrt(1 - ab_prev - sigma**2) * 0.5 + sigma * z
    assert noisy["sample"].item() == pytest.approx(expected, rel=1e-12)
    # Clipped to 1, eps is the noise that takes 1 to x.
    eps = (2 - math.sqrt(ab)) / math.sqrt(1 - ab)
    clipped = diffusion.ddim_sample(model, x, torch.tensor([1]))
    assert clipped["pred_xstart"].item() == 1
    assert clipped["sample"].item() == pytest.approx(
        math.sqrt(ab_prev) + math.sqrt(1 - ab_prev) * eps, rel=1e-12
    )
    # The last step returns x_0 itself, at any eta.
    last = diffusion.ddim_sample(model, x, torch.tensor([0]), clip_denoised=False, eta=1.0)
    assert last["sample"].item() == pytest.approx(last["pred_xstart"].item(), rel=1e-12)


@pytest.mark.parametrize("noise_schedule", ["linear", "squaredcos_cap_v2"])
def test_ddim_stays_finite_in_float32_at_few_steps(noise_schedule: str) -> None:
    """1 - ab' - sigma^2 is >= 0, but at eta = 1 it can round below where ab is tiny (cosine, K = 6)."""
    for steps in range(2, 40):
        x, t = torch.randn(steps, 2), torch.arange(steps)
        out = create_diffusion(steps, noise_schedule).ddim_sample(learned, x, t, eta=1.0)
        assert bool(out["sample"].isfinite().all()), steps


def test_p_sample_adds_noise_except_at_step_0_of_each_sample() -> None:
    diffusion = create_diffusion("50")
    x, t = torch.randn(3, 2, 4, 4, dtype=torch.float64), torch.tensor([49, 0, 7])
    p = diffusion.p_mean_variance(learned, x, t)
    out = diffusion.p_sample(learned, x, t, generator=torch.Generator().manual_seed(5))["sample"]
    z = torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(out[1], p["mean"][1], rtol=0, atol=0)
    torch.testing.assert_close(
        out, p["mean"] + torch.tensor([1, 0, 1]).view(3, 1, 1, 1) * p["variance"].sqrt() * z
    )


@pytest.mark.parametrize("sampler", ["p_sample", "ddim_sample"])
def test_each_sample_of_a_batch_is_its_own(sampler: str) -> None:
    diffusion = create_diffusion("50")
    noise = torch.randn(3, 2, 4, 4, dtype=torch.float64)
    if sampler == "p_sample":  # the noise of a batch is one draw, so compare single steps at t = 0
        t = torch.zeros(3, dtype=torch.int64)
        batch = diffusion.p_sample(learned, noise, t)["sample"]
        singles = [diffusion.p_sample(learned, row[None], t[:1])["sample"] for row in noise]
    else:
        batch = diffusion.ddim_sample_loop(learned, noise.shape, noise)
        singles = [diffusion.ddim_sample_loop(learned, (1, 2, 4, 4), row[None]) for row in noise]
    torch.testing.assert_close(batch, torch.cat(singles), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("loop", ["p_sample_loop", "ddim_sample_loop"])
def test_generator_fixes_everything(loop: str) -> None:
    run = getattr(create_diffusion("10"), loop)
    kwargs = {} if loop == "p_sample_loop" else {"eta": 0.5}

    def at(seed: int, noise: Tensor | None = None) -> Tensor:
        return run(learned, (2, 2, 4, 4), noise, generator=torch.Generator().manual_seed(seed), **kwargs)

    torch.manual_seed(0)
    first = at(1)
    torch.manual_seed(1)
    torch.testing.assert_close(first, at(1), rtol=0, atol=0)
    assert not torch.equal(first, at(2))
    noise = torch.randn(2, 2, 4, 4)
    torch.testing.assert_close(at(1, noise), at(1, noise), rtol=0, atol=0)
    assert not torch.equal(at(1, noise), at(2, noise)) and not torch.equal(at(1, noise), at(1, -noise))


def test_ddim_without_eta_draws_nothing() -> None:
    diffusion = create_diffusion("10")
    noise = torch.randn(2, 2, 4, 4)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = diffusion.ddim_sample_loop(learned, noise.shape, noise)
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(first, diffusion.ddim_sample_loop(learned, noise.shape, noise), rtol=0, atol=0)


@pytest.mark.parametrize("loop", ["p_sample_loop", "ddim_sample_loop"])
def test_progressive_yields_every_step_and_ends_as_the_loop(loop: str) -> None:
    diffusion = create_diffusion("10")
    noise = torch.randn(2, 2, 4, 4)
    steps = getattr(diffusion, loop + "_progressive")(
        learned, noise.shape, noise, generator=torch.Generator().manual_seed(1)
    )
    outs = []
    for out in steps:
        assert torch.is_grad_enabled() and set(out) == {"sample", "pred_xstart"}
        outs.append(out)
    final = getattr(diffusion, loop)(learned, noise.shape, noise, generator=torch.Generator().manual_seed(1))
    assert len(outs) == 10 and not final.requires_grad
    torch.testing.assert_close(outs[-1]["sample"], final, rtol=0, atol=0)
    torch.testing.assert_close(outs[-1]["pred_xstart"], final, rtol=1e-6, atol=1e-6)


def test_a_replaced_sample_is_what_the_next_step_gets() -> None:
    diffusion = create_diffusion("10")
    seen: list[Tensor] = []

    def model(x: Tensor, t: Tensor) -> Tensor:
        seen.append(x)
        return learned(x, t)

    for out in diffusion.ddim_sample_loop_progressive(model, (1, 1, 2, 2)):
        out["sample"] = torch.full_like(out["sample"], 0.25)
    assert len(seen) == 10 and all(bool((x == 0.25).all()) for x in seen[1:])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("loop", ["p_sample_loop", "ddim_sample_loop"])
def test_samples_have_the_noises_dtype(loop: str, dtype: torch.dtype) -> None:
    def model(x: Tensor, t: Tensor) -> Tensor:
        assert x.dtype == dtype
        return learned(x, t).bfloat16()

    noise = torch.randn(2, 2, 4, 4, dtype=dtype)
    out = getattr(create_diffusion("10"), loop)(model, noise.shape, noise)
    assert out.dtype == dtype and out.shape == noise.shape and bool(out.isfinite().all())


def test_cond_fn_shifts_the_mean_and_the_noise() -> None:
    diffusion = create_diffusion("ddim50")
    x, t = torch.randn(2, 2, 4, 4, dtype=torch.float64), torch.tensor([20, 0])
    y = torch.tensor([1.0, 2.0], dtype=torch.float64)

    def model(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return learned(x, t)

    def gradient(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        assert t.tolist() == [400, 0]
        return (x - 1) * y.view(-1, 1, 1, 1)

    g = gradient(x, torch.tensor([400, 0]), y)
    kwargs: dict[str, Any] = {"clip_denoised": False, "model_kwargs": {"y": y}}
    p = diffusion.p_mean_variance(model, x, t, **kwargs)
    out = diffusion.p_sample(
        model, x, t, cond_fn=gradient, generator=torch.Generator().manual_seed(1), **kwargs
    )
    plain = diffusion.p_sample(model, x, t, generator=torch.Generator().manual_seed(1), **kwargs)
    torch.testing.assert_close(out["sample"] - plain["sample"], p["variance"] * g, rtol=1e-9, atol=1e-12)

    ab = diffusion.alphas_cumprod[t].view(-1, 1, 1, 1)

    def shifted(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        eps, v = learned(x, t).chunk(2, dim=1)
        return torch.cat([eps - (1 - ab).sqrt() * g, v], dim=1)

    guided = diffusion.ddim_sample(model, x, t, cond_fn=gradient, **kwargs)
    expected = diffusion.ddim_sample(shifted, x, t, **kwargs)
    for name in expected:
        torch.testing.assert_close(guided[name], expected[name], rtol=1e-9, atol=1e-9)
    with pytest.raises(
        ValueError, match=r"cond_fn: expected it to return shape \(2, 2, 4, 4\), came \(2, 1, 4, 4\)"
    ):
        diffusion.p_sample(model, x, t, cond_fn=lambda x, t, y: x[:, :1], **kwargs)


class TinyDiT(torch.nn.Module):
    """The surface that the public scripts use, with weights of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(11, 4)
        self.mix = torch.nn.Conv2d(4, 8, 1)

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return self.mix(x + self.table(y)[:, :, None, None] + t.view(-1, 1, 1, 1) / 1000)

    def forward_with_cfg(self, x: Tensor, t: Tensor, y: Tensor, cfg_scale: float) -> Tensor:
        return self.forward(x, t, y) * cfg_scale


def test_the_public_scripts_calls() -> None:
    model, device = TinyDiT(), "cpu"
    diffusion = create_diffusion(timestep_respacing="")
    x, y = torch.randn(3, 4, 8, 8), torch.tensor([1, 2, 3])
    t = torch.randint(0, diffusion.num_timesteps, (3,), device=device)
    loss = diffusion.training_losses(model, x, t, dict(y=y))["loss"].mean()
    loss.backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())
    diffusion = create_diffusion(str(5))
    z = torch.randn(6, 4, 8, 8, device=device)
    kwargs: dict[str, Any] = dict(y=torch.cat([y, torch.full((3,), 10)]), cfg_scale=4.0)
    samples = diffusion.p_sample_loop(
        model.forward_with_cfg,
        z.shape,
        z,
        clip_denoised=False,
        model_kwargs=kwargs,
        progress=True,
        device=device,
    )
    assert samples.shape == z.shape and not samples.requires_grad


def test_missing_tqdm_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_module(name: str) -> builtins.object:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", no_module)
    with pytest.raises(ImportError, match="progress=True needs the package tqdm"):
        create_diffusion("2").p_sample_loop(learned, (1, 1, 2, 2), progress=True)


def test_without_noise_the_models_device_is_used() -> None:
    model = TinyDiT().to("meta")
    y = torch.zeros(2, dtype=torch.int64, device="meta")
    diffusion = create_diffusion("3")
    for call, kwargs in ((model, {"y": y}), (model.forward_with_cfg, {"y": y, "cfg_scale": 1.0})):
        assert diffusion.p_sample_loop(call, (2, 4, 8, 8), model_kwargs=kwargs).device.type == "meta"
    assert diffusion.p_sample_loop(learned, (2, 4, 8, 8)).device.type == "cpu"


def test_errors() -> None:
    diffusion = create_diffusion("5")
    noise = torch.randn(2, 1, 4, 4)
    with pytest.raises(
        ValueError, match=r"noise: expected floating point \(2, 1, 4, 5\), came .* \(2, 1, 4, 4\)"
    ):
        diffusion.p_sample_loop(learned, (2, 1, 4, 5), noise)
    with pytest.raises(ValueError, match="noise: expected floating point .* came torch.int64"):
        diffusion.ddim_sample_loop(learned, noise.shape, noise.long())
    with pytest.raises(ValueError, match="device: expected noise's device cpu, came meta"):
        diffusion.p_sample_loop(learned, noise.shape, noise, device="meta")
    with pytest.raises(ValueError, match="device: expected noise's device cpu, came cpu:1"):
        diffusion.p_sample_loop(learned, noise.shape, noise, device="cpu:1")
    with pytest.raises(ValueError, match="eta: expected 0 <= eta <= 1, came 1.5"):
        diffusion.ddim_sample_loop(learned, noise.shape, noise, eta=1.5)
    x, t = torch.zeros(2, 1, 4, 4, device="meta"), torch.zeros(2, dtype=torch.int64, device="meta")
    with pytest.raises(
        ValueError, match="generator: expected one on meta, where the noise is drawn, came one on cpu"
    ):
        diffusion.p_sample(learned, x, t, generator=torch.Generator())
