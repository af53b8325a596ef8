# SPDX-License-Identifier: Apache-2.0
"""Training losses and the variational bound, against closed forms for Gaussian data and torch.distributions.

LEGEND: N batch, C channels, H height, W width, K steps; ab = alpha-bar, b = beta, ab' = ab one step earlier.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from dit_fast.diffusion import create_diffusion
from dit_fast.diffusion.likelihood import discretized_gaussian_nll, normal_kl

SHAPE = (4, 2, 5, 7)
LN2 = math.log(2)


def learned(x: Tensor, t: Tensor) -> Tensor:
    return torch.cat([torch.sin(3 * x) + 0.1, torch.cos(2 * x)], dim=1)


def bin_nll(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """-ln of a bin's mass by scipy's CDFs: (sf, not 1 - cdf, above the mean)."""
    at, center, scale = (value.double().numpy() for value in (x, mean, std))
    low = np.where(at < -0.999, -np.inf, (at - 1 / 255 - center) / scale)
    high = np.where(at > 0.999, np.inf, (at + 1 / 255 - center) / scale)
    below = stats.norm.cdf(high) - stats.norm.cdf(low)
    above = stats.norm.sf(low) - stats.norm.sf(high)
    return torch.from_numpy(-np.log(np.maximum(np.where(at > center, above, below), 1e-12)))


def test_keys_shapes_dtypes_and_sum() -> None:
    diffusion = create_diffusion()
    x, t = torch.randn(SHAPE), torch.tensor([0, 1, 500, 999])
    for x_start in (x, x.bfloat16()):
        losses = diffusion.training_losses(learned, x_start, t, {})
        assert set(losses) == {"loss", "mse", "vb"}
        for value in losses.values():
            assert value.shape == (4,) and value.dtype == torch.float32 and bool(value.isfinite().all())
        torch.testing.assert_close(losses["loss"], losses["mse"] + losses["vb"], rtol=1e-6, atol=0)
    assert diffusion.training_losses(learned, x.double(), t)["loss"].dtype == torch.float64


@pytest.mark.parametrize("predict_xstart", [False, True])
def test_mse_is_on_the_prediction(predict_xstart: bool) -> None:
    diffusion = create_diffusion(predict_xstart=predict_xstart)
    x, noise = torch.randn(SHAPE, dtype=torch.float64), torch.randn(SHAPE, dtype=torch.float64)
    t = torch.tensor([0, 1, 500, 999])
    losses = diffusion.training_losses(learned, x, t, noise=noise)
    prediction = learned(diffusion.q_sample(x, t, noise), t)[:, :2]
    expected = ((prediction - (x if predict_xstart else noise)) ** 2).mean(dim=(1, 2, 3))
    torch.testing.assert_close(losses["mse"], expected, rtol=1e-12, atol=0)


def test_vb_is_the_direct_kl_or_bin_likelihood() -> None:
    diffusion = create_diffusion()
    x, noise = torch.rand(SHAPE, dtype=torch.float64) * 2.4 - 1.2, torch.randn(SHAPE, dtype=torch.float64)
    t = torch.tensor([0, 1, 500, 999])
    x_t = diffusion.q_sample(x, t, noise)
    vb = diffusion.training_losses(learned, x, t, noise=noise)["vb"]
    p = diffusion.p_mean_variance(learned, x_t, t, clip_denoised=False)
    std = p["variance"].sqrt()
    mean, variance, _ = diffusion.q_posterior_mean_variance(x, x_t, t)
    kl = kl_divergence(Normal(mean[1:], variance[1:].sqrt()), Normal(p["mean"][1:], std[1:]))
    expected = torch.cat([bin_nll(x[:1], p["mean"][:1], std[:1]), kl]).mean(dim=(1, 2, 3)) / LN2
    torch.testing.assert_close(vb, expected, rtol=1e-9, atol=0)


def test_vlb_terms_clip_where_training_does_not() -> None:
    diffusion = create_diffusion("50")
    x, t = torch.rand(SHAPE, dtype=torch.float64), torch.tensor([0, 1, 20, 49])
    noise = torch.randn(SHAPE, dtype=torch.float64)
    x_t = diffusion.q_sample(x, t, noise)
    trained = diffusion.training_losses(learned, x, t, noise=noise)["vb"]
    plain = diffusion.vlb_terms(learned, x, x_t, t, clip_denoised=False)
    torch.testing.assert_close(trained, plain["vb"] * 50 / 1000, rtol=1e-12, atol=0)
    clipped = diffusion.vlb_terms(learned, x, x_t, t)
    assert clipped["pred_xstart"].abs().max().item() == 1 < plain["pred_xstart"].abs().max().item()
    assert bool((clipped["vb"][2:] < plain["vb"][2:]).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bin_likelihood(dtype: torch.dtype) -> None:
    """Bins in the middle, at both open edges, beyond them, and out to the floor."""
    x = torch.tensor([-1.3, -1.0, -0.9961, -0.5, 0.0, 0.3, 0.9961, 1.0, 1.3], dtype=dtype).view(-1, 1, 1)
    mean = torch.linspace(-1.1, 1.1, 23, dtype=dtype).view(1, -1, 1)
    std = torch.tensor([1e-3, 0.01, 0.1, 1.0], dtype=dtype).view(1, 1, -1)
    out = discretized_gaussian_nll(x, mean, 2 * std.log())
    expected = bin_nll(*torch.broadcast_tensors(x, mean, std))
    # Rounding: (1) of the edges, 4 eps of terms up to 2.4 / std, at a slope of at most 8 above the floor;
    # (2) of the difference of two tails, 4 eps of the larger tail, relative to the mass; (3) of ln and std.
    eps = torch.finfo(dtype).eps
    edges = 8 * 4 * eps * 2.4 / std.double()
    tail = Normal(0.0, 1.0).cdf((1 / 255 - (x - mean).double().abs()) / std.double())
    tolerance = edges + 4 * eps * tail / torch.exp(-expected) + 16 * eps * expected.abs()
    floor = -math.log(1e-12)
    inner = expected < floor - 1e-6
    assert inner.sum() > 200 and bool((expected >= floor - 1e-6).any())
    assert bool(((out.double() - expected).abs() <= tolerance)[inner].all())
    torch.testing.assert_close(out[~inner], torch.full_like(out[~inner], floor), rtol=1e-5, atol=0)


def test_bins_sum_to_one() -> None:
    centers = torch.linspace(-1, 1, 256, dtype=torch.float64)
    for mean, std in ((0.1, 0.02), (-0.99, 0.1), (0.7, 2.0)):
        log_variance = torch.tensor(2 * math.log(std), dtype=torch.float64)
        mass = torch.exp(
            -discretized_gaussian_nll(centers, torch.tensor(mean, dtype=torch.float64), log_variance)
        )
        assert mass.sum().item() == pytest.approx(1, abs=256e-12)


def test_normal_kl() -> None:
    mean1, mean2, log1, log2 = torch.randn(4, 50, dtype=torch.float64)
    expected = kl_divergence(Normal(mean1, (log1 / 2).exp()), Normal(mean2, (log2 / 2).exp()))
    torch.testing.assert_close(normal_kl(mean1, log1, mean2, log2), expected, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_the_model_gets_x_t_in_the_dtype_of_x_start(dtype: torch.dtype) -> None:
    diffusion = create_diffusion("ddim50")
    x, noise, t = (
        torch.randn(SHAPE, dtype=dtype),
        torch.randn(SHAPE, dtype=dtype),
        torch.tensor([0, 1, 20, 49]),
    )
    seen: list[Tensor] = []

    def model(x: Tensor, t: Tensor) -> Tensor:
        seen.extend((x, t))
        return learned(x, t)

    diffusion.training_losses(model, x, t, noise=noise)
    assert seen[0].dtype == dtype and torch.equal(seen[0], diffusion.q_sample(x, t, noise))
    assert seen[1].tolist() == [0, 20, 400, 980]


def test_the_prediction_is_detached_in_vb() -> None:
    diffusion = create_diffusion()
    x, t = torch.randn(SHAPE), torch.tensor([0, 1, 500, 999])
    eps, v = torch.randn(SHAPE, requires_grad=True), torch.zeros(SHAPE, requires_grad=True)
    losses = diffusion.training_losses(lambda x, t: torch.cat([eps, v], dim=1), x, t)
    eps_grad, v_grad = torch.autograd.grad(losses["vb"].sum(), [eps, v], retain_graph=True, allow_unused=True)
    assert eps_grad is None or eps_grad.abs().max().item() == 0
    assert v_grad.isfinite().all() and bool((v_grad.flatten(1).abs().sum(1) > 0).all())
    mse_grad, unused = torch.autograd.grad(
        losses["mse"].sum(), [eps, v], retain_graph=True, allow_unused=True
    )
    assert bool((mse_grad.flatten(1).abs().sum(1) > 0).all())
    assert unused is None or unused.abs().max().item() == 0
    loss_grads = torch.autograd.grad(losses["loss"].sum(), [eps, v])
    torch.testing.assert_close(loss_grads[0], mse_grad)
    torch.testing.assert_close(loss_grads[1], v_grad)


def test_gradients_stay_finite_far_from_the_data() -> None:
    diffusion = create_diffusion()
    x, t = torch.full(SHAPE, 30.0), torch.tensor([0, 0, 1, 999])
    out = torch.full((4, 4, 5, 7), -5.0).requires_grad_()
    diffusion.training_losses(lambda x, t: out, x, t)["loss"].sum().backward()
    assert out.grad is not None and bool(out.grad.isfinite().all())


@pytest.mark.parametrize("sigma_small", [False, True])
def test_fixed_variance_loss_is_the_mse(sigma_small: bool) -> None:
    diffusion = create_diffusion(learn_sigma=False, sigma_small=sigma_small)
    weight = torch.ones((), requires_grad=True)
    losses = diffusion.training_losses(
        lambda x, t: weight * x, torch.randn(SHAPE), torch.tensor([0, 1, 500, 999])
    )
    torch.testing.assert_close(losses["loss"], losses["mse"], rtol=0, atol=0)
    assert losses["loss"].requires_grad and not losses["vb"].requires_grad
    assert bool(losses["vb"].isfinite().all() and (losses["vb"] > 0).all())


def test_each_sample_of_a_batch_is_its_own() -> None:
    diffusion = create_diffusion()
    x, noise = torch.randn(SHAPE, dtype=torch.float64), torch.randn(SHAPE, dtype=torch.float64)
    t = torch.tensor([0, 1, 500, 999])
    batch = diffusion.training_losses(learned, x, t, noise=noise)
    for row in range(4):
        one = slice(row, row + 1)
        single = diffusion.training_losses(learned, x[one], t[one], noise=noise[one])
        for name, value in single.items():
            torch.testing.assert_close(batch[name][one], value, rtol=1e-12, atol=0)


def test_generator_fixes_the_noise() -> None:
    diffusion = create_diffusion()
    x, t = torch.randn(SHAPE), torch.tensor([0, 1, 500, 999])

    def run(seed: int) -> Tensor:
        return diffusion.training_losses(learned, x, t, generator=torch.Generator().manual_seed(seed))["loss"]

    torch.testing.assert_close(run(1), run(1), rtol=0, atol=0)
    assert not torch.equal(run(1), run(2))


@pytest.mark.parametrize("model_dtype", [torch.bfloat16, torch.float16])
def test_low_precision_model_loses_nothing_but_its_output(model_dtype: torch.dtype) -> None:
    diffusion = create_diffusion()
    x, noise, t = torch.randn(SHAPE), torch.randn(SHAPE), torch.tensor([0, 1, 500, 999])
    out = learned(x, t).to(model_dtype)
    low = diffusion.training_losses(lambda x, t: out, x, t, noise=noise)
    high = diffusion.training_losses(lambda x, t: out.double(), x.double(), t, noise=noise.double())
    for name, value in low.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value.double(), high[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("step", [1, 10, 300, 999])
def test_vb_of_the_exact_model_is_closed_form(
    gaussian_chain: Any, generator: torch.Generator, step: int
) -> None:
    """For Gaussian data and the exact reverse step, E KL_t = 1/2 ln(exact variance / posterior variance)."""
    chain = gaussian_chain(0.1, 0.4, list(range(1000)))
    diffusion = create_diffusion()
    x = chain.data(64, 1, 32, 32, generator=generator)
    t = torch.full((64,), step)
    vb = diffusion.training_losses(chain.learned_model, x, t, generator=generator)["vb"]
    exact = chain.steps[step]
    expected = 0.5 * math.log(exact.exact_variance / exact.posterior_variance) / LN2
    error = vb.std().item() / math.sqrt(64)
    assert abs(vb.mean().item() - expected) < 5 * error
    assert error < 0.02 * expected  # so that the line above can fail


def expected_bin_bits(std: float) -> float:
    """E[-log2 mass of x's bin under N(m, std^2)] for x ~ N(m, std^2): one integral."""
    half = 1 / 255 / std

    def integrand(z: float) -> float:
        mass = stats.norm.cdf(half - abs(z)) - stats.norm.cdf(-half - abs(z))
        return -math.log2(mass) * stats.norm.pdf(z)

    return 2 * integrate.quad(integrand, 0, 12)[0]


def test_the_whole_bound_of_the_exact_model_is_closed_form(
    gaussian_chain: Any, generator: torch.Generator
) -> None:
    timesteps = list(range(0, 1000, 40))
    chain = gaussian_chain(0.1, 0.2, timesteps)
    diffusion = create_diffusion("ddim25")
    x = chain.data(64, 1, 16, 16, generator=generator)
    out = diffusion.calc_bpd_loop(chain.learned_model, x, clip_denoised=False, generator=generator)
    assert {name: tuple(value.shape) for name, value in out.items()} == {
        "total_bpd": (64,),
        "prior_bpd": (64,),
        "vb": (64, 25),
        "xstart_mse": (64, 25),
        "mse": (64, 25),
    }
    last, first = chain.steps[-1], chain.steps[0]
    # E KL(q(x_T | x_0) || N(0,1)), with E x_0^2 = mu^2 + s^2
    prior = 0.5 * (last.ab * (0.1**2 + 0.2**2) + (1 - last.ab) - 1 - math.log(1 - last.ab)) / LN2
    kls = [0.5 * math.log(step.exact_variance / step.posterior_variance) / LN2 for step in chain.steps[1:]]
    bits = [*reversed(kls), expected_bin_bits(math.sqrt(first.exact_variance))]  # sampling order: t = 0 last
    checks = {
        "total_bpd": prior + sum(bits),
        "prior_bpd": prior,
        "vb": torch.tensor(bits, dtype=torch.float64),
        # E Var(x_0 | x_t) and, from eps = (x_t - sqrt(ab) x_0) / sqrt(1 - ab), its multiple ab / (1 - ab)
        "xstart_mse": torch.tensor([s.s**2 * (1 - s.ab) / s.marginal for s in reversed(chain.steps)]),
        "mse": torch.tensor([s.s**2 * s.ab / s.marginal for s in reversed(chain.steps)]),
    }
    for name, expected in checks.items():
        error = out[name].std(dim=0) / math.sqrt(64)
        assert bool(((out[name].mean(dim=0) - expected).abs() < 5 * error + 1e-9).all()), name
        assert bool((error < 0.05 * out[name].mean(dim=0)).all()), name


def test_vb_weight_keeps_its_share_under_respacing(gaussian_chain: Any, generator: torch.Generator) -> None:
    """K / 1000 per term: the average over t estimates 0.001 L_vlb, and L_vlb barely depends on K."""
    shares = []
    for respacing, stride in (("", 1), ("ddim250", 4)):
        chain = gaussian_chain(0.1, 0.2, list(range(0, 1000, stride)))
        diffusion = create_diffusion(respacing)
        k = diffusion.num_timesteps
        x = chain.data(k, 1, 8, 8, generator=generator)
        losses = diffusion.training_losses(chain.learned_model, x, torch.arange(k), generator=generator)
        exact = sum(0.5 * math.log(s.exact_variance / s.posterior_variance) for s in chain.steps[1:]) / LN2
        exact += expected_bin_bits(math.sqrt(chain.steps[0].exact_variance))
        assert losses["vb"].mean().item() == pytest.approx(exact / 1000, rel=0.03)
        shares.append(exact)
    assert shares[1] == pytest.approx(shares[0], rel=0.2)
