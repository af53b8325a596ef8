# SPDX-License-Identifier: Apache-2.0
"""q and p of the chain: statistics, Bayes' rule, variances, clipping, dtypes and errors.

LEGEND: N batch, C channels, H height, W width; ab = alpha-bar, b = beta, ab' = ab one step earlier.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from dit_fast.diffusion import Diffusion, create_diffusion

SHAPE = (3, 2, 5, 7)


def learned(x: Tensor, t: Tensor) -> Tensor:
    return torch.cat([torch.sin(3 * x) + 0.1, torch.cos(2 * x)], dim=1)


def test_q_sample_is_the_stated_combination() -> None:
    diffusion = create_diffusion()
    x, noise = torch.randn(SHAPE, dtype=torch.float64), torch.randn(SHAPE, dtype=torch.float64)
    t = torch.tensor([0, 500, 999])
    out = diffusion.q_sample(x, t, noise)
    for row, step in enumerate(t.tolist()):
        ab = diffusion.alphas_cumprod[step].item()
        torch.testing.assert_close(
            out[row], math.sqrt(ab) * x[row] + math.sqrt(1 - ab) * noise[row], rtol=1e-14, atol=1e-14
        )


def test_q_sample_statistics(generator: torch.Generator) -> None:
    diffusion = create_diffusion()
    n = 100_000
    x = torch.tensor([-0.7, 0.2, 0.9]).view(3, 1).expand(3, n)
    t = torch.tensor([10, 300, 999])
    out = diffusion.q_sample(x, t, generator=generator).double()
    for row, step in enumerate(t.tolist()):
        ab = diffusion.alphas_cumprod[step].item()
        assert abs(out[row].mean().item() - math.sqrt(ab) * x[row, 0].item()) < 5 * math.sqrt((1 - ab) / n)
        assert abs(out[row].var().item() / (1 - ab) - 1) < 5 * math.sqrt(2 / n)
    mean, variance, log_variance = diffusion.q_mean_variance(x, t)
    assert mean.shape == variance.shape == log_variance.shape == x.shape
    torch.testing.assert_close(variance[:, 0].double(), 1 - diffusion.alphas_cumprod[t], rtol=1e-6, atol=0)
    torch.testing.assert_close(log_variance, variance.log(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("respacing", ["", "25"])
def test_posterior_is_bayes_rule(respacing: str) -> None:
    """q(x_{t-1} | x_t, x_0) is the product of q(x_{t-1} | x_0) and q(x_t | x_{t-1}): add precisions."""
    diffusion = create_diffusion(respacing)
    x0, x_t = torch.randn(2, 1, 4, 4, dtype=torch.float64), torch.randn(2, 1, 4, 4, dtype=torch.float64)
    t = torch.tensor([1, diffusion.num_timesteps - 1])
    mean, variance, log_variance = diffusion.q_posterior_mean_variance(x0, x_t, t)
    ab = diffusion.alphas_cumprod
    for row, step in enumerate(t.tolist()):
        beta, ab_prev = 1 - (ab[step] / ab[step - 1]).item(), ab[step - 1].item()
        precision = 1 / (1 - ab_prev) + (1 - beta) / beta
        weighted = math.sqrt(ab_prev) * x0[row] / (1 - ab_prev) + math.sqrt(1 - beta) * x_t[row] / beta
        torch.testing.assert_close(mean[row], weighted / precision, rtol=1e-10, atol=1e-10)
        assert variance[row].max().item() == pytest.approx(1 / precision, rel=1e-10)
        assert log_variance[row].max().item() == pytest.approx(-math.log(precision), rel=1e-10)


def test_posterior_at_step_0_is_x0_with_a_clipped_log_variance() -> None:
    diffusion = create_diffusion()
    x0, x_t = torch.randn(1, 1, 4, 4, dtype=torch.float64), torch.randn(1, 1, 4, 4, dtype=torch.float64)
    mean, variance, log_variance = diffusion.q_posterior_mean_variance(x0, x_t, torch.tensor([0]))
    torch.testing.assert_close(mean, x0, rtol=1e-12, atol=1e-12)
    assert variance.abs().max().item() == 0
    next_log_variance = diffusion.q_posterior_mean_variance(x0, x_t, torch.tensor([1]))[2]
    torch.testing.assert_close(log_variance, next_log_variance, rtol=0, atol=0)


def log_variance_of(diffusion: Diffusion, v: float, step: int) -> float:
    def model(x: Tensor, t: Tensor) -> Tensor:
        return torch.cat([torch.zeros_like(x), torch.full_like(x, v)], dim=1)

    x = torch.randn(1, 1, 2, 2, dtype=torch.float64)
    out = diffusion.p_mean_variance(model, x, torch.tensor([step]))
    torch.testing.assert_close(out["variance"], out["log_variance"].exp(), rtol=1e-14, atol=0)
    return out["log_variance"][0, 0, 0, 0].item()


@pytest.mark.parametrize("step", [1, 20, 49])
def test_learned_range_endpoints_and_interpolation(step: int) -> None:
    diffusion = create_diffusion("50")
    ab, ab_prev = (diffusion.alphas_cumprod[i].item() for i in (step, step - 1))
    beta = 1 - ab / ab_prev
    low, high = math.log(beta * (1 - ab_prev) / (1 - ab)), math.log(beta)
    assert log_variance_of(diffusion, 1.0, step) == pytest.approx(high, rel=1e-10)
    assert log_variance_of(diffusion, -1.0, step) == pytest.approx(low, rel=1e-10)
    assert log_variance_of(diffusion, 0.5, step) == pytest.approx(0.75 * high + 0.25 * low, rel=1e-10)


@pytest.mark.parametrize("sigma_small", [False, True])
def test_fixed_variances(sigma_small: bool) -> None:
    diffusion = create_diffusion("50", learn_sigma=False, sigma_small=sigma_small)
    x = torch.randn(3, 1, 2, 2, dtype=torch.float64)
    t = torch.tensor([0, 1, 30])
    variance = diffusion.p_mean_variance(lambda x, t: x, x, t)["variance"][:, 0, 0, 0]
    ab = diffusion.alphas_cumprod
    beta = 1 - ab[t[1:]] / ab[t[1:] - 1]
    small = beta * (1 - ab[t[1:] - 1]) / (1 - ab[t[1:]])
    torch.testing.assert_close(variance[1:], small if sigma_small else beta, rtol=1e-10, atol=0)
    assert variance[0].item() == pytest.approx(
        small[0].item(), rel=1e-10
    )  # step 0: that of step 1, either way


def test_prediction_of_x0_or_of_noise_give_the_same_step() -> None:
    x = torch.randn(SHAPE, dtype=torch.float64)
    t = torch.tensor([0, 4, 49])
    by_eps, by_x0 = create_diffusion("50"), create_diffusion("50", predict_xstart=True)

    def x0_model(x: Tensor, timesteps: Tensor) -> Tensor:
        eps, v = learned(x, timesteps).chunk(2, dim=1)
        ab = by_eps.alphas_cumprod[t].view(-1, 1, 1, 1)
        return torch.cat([(x - (1 - ab).sqrt() * eps) / ab.sqrt(), v], dim=1)

    for clip in (False, True):
        first = by_eps.p_mean_variance(learned, x, t, clip_denoised=clip)
        second = by_x0.p_mean_variance(x0_model, x, t, clip_denoised=clip)
        for name in first:
            torch.testing.assert_close(first[name], second[name], rtol=1e-10, atol=1e-10)


def test_clipping_comes_after_denoised_fn() -> None:
    diffusion = create_diffusion("50", learn_sigma=False, predict_xstart=True)
    x, t = torch.full((1, 1, 1, 3), 0.3, dtype=torch.float64), torch.tensor([20])

    def model(x: Tensor, t: Tensor) -> Tensor:
        return torch.tensor([-3.0, 0.4, 2.0], dtype=torch.float64).view(1, 1, 1, 3)

    def half(x0: Tensor) -> Tensor:
        return x0 / 2

    plain = diffusion.p_mean_variance(model, x, t, clip_denoised=False, denoised_fn=half)
    clipped = diffusion.p_mean_variance(model, x, t, denoised_fn=half)
    assert plain["pred_xstart"].flatten().tolist() == [-1.5, 0.2, 1.0]
    assert clipped["pred_xstart"].flatten().tolist() == [-1.0, 0.2, 1.0]
    expected = diffusion.q_posterior_mean_variance(clipped["pred_xstart"], x, t)[0]
    torch.testing.assert_close(clipped["mean"], expected, rtol=1e-14, atol=0)


def test_the_model_sees_timesteps_of_the_full_chain_and_its_kwargs() -> None:
    diffusion = create_diffusion("ddim50")
    seen: dict[str, Any] = {}

    def model(x: Tensor, t: Tensor, y: Tensor, flag: str) -> Tensor:
        seen.update(t=t, y=y, flag=flag)
        return torch.cat([x, x], dim=1)

    y = torch.tensor([7, 8, 9])
    diffusion.p_mean_variance(
        model, torch.randn(SHAPE), torch.tensor([0, 3, 49]), model_kwargs={"y": y, "flag": "on"}
    )
    assert seen["t"].tolist() == [0, 60, 980] and seen["t"].dtype == torch.int64
    assert seen["y"] is y and seen["flag"] == "on"


def test_each_sample_of_a_batch_is_its_own() -> None:
    diffusion = create_diffusion("50")
    x, t = torch.randn(SHAPE, dtype=torch.float64), torch.tensor([49, 0, 17])
    batch = diffusion.p_mean_variance(learned, x, t)
    for row in range(3):
        single = diffusion.p_mean_variance(learned, x[row : row + 1], t[row : row + 1])
        for name, value in single.items():
            torch.testing.assert_close(batch[name][row : row + 1], value, rtol=1e-14, atol=1e-14)


def test_bfloat16_model_is_read_in_float32() -> None:
    diffusion = create_diffusion("50")
    x, t = torch.randn(SHAPE), torch.tensor([49, 0, 17])
    rounded = learned(x, t).bfloat16()
    out = diffusion.p_mean_variance(lambda x, t: rounded, x, t)
    exact = diffusion.p_mean_variance(lambda x, t: rounded.double(), x.double(), t)
    for name in out:
        assert out[name].dtype == torch.float32
        torch.testing.assert_close(out[name].double(), exact[name], rtol=1e-5, atol=1e-5)
    assert diffusion.q_sample(x.bfloat16(), t).dtype == torch.bfloat16


def test_strided_and_rank_2_inputs() -> None:
    diffusion = create_diffusion("50")
    t = torch.tensor([1, 2, 3])
    strided = torch.randn(3, 7, 5, 2).permute(0, 3, 2, 1)
    for x in (strided, torch.randn(3, 4)):
        out = diffusion.p_mean_variance(learned, x, t)["mean"]
        torch.testing.assert_close(out, diffusion.p_mean_variance(learned, x.contiguous(), t)["mean"])


def test_empty_batch() -> None:
    t = torch.zeros(0, dtype=torch.int64)
    x = torch.zeros(0, 2, 4, 4)
    assert create_diffusion("50").p_mean_variance(learned, x, t)["mean"].shape == x.shape


X = torch.zeros(2, 3, 4, 4)
T = torch.zeros(2, dtype=torch.int64)


@pytest.mark.parametrize(
    ("t", "words"),
    [
        (torch.zeros(2), r"t: expected torch.int64 \(2,\) on cpu, came torch.float32 \(2,\) on cpu"),
        (
            torch.zeros(3, dtype=torch.int64),
            r"t: expected torch.int64 \(2,\) on cpu, came torch.int64 \(3,\)",
        ),
        (
            torch.zeros(2, 1, dtype=torch.int64),
            r"t: expected torch.int64 \(2,\) on cpu, came torch.int64 \(2, 1\)",
        ),
        (torch.zeros(2, dtype=torch.int64, device="meta"), "t: expected .* on cpu, came .* on meta"),
        (torch.tensor([0, 50]), "t: expected values from 0 to 49, came 0 to 50"),
        (torch.tensor([-1, 3]), "t: expected values from 0 to 49, came -1 to 3"),
    ],
)
def test_errors_on_t(t: Tensor, words: str) -> None:
    diffusion = create_diffusion("50")
    with pytest.raises(ValueError, match=words):
        diffusion.q_sample(X, t)
    with pytest.raises(ValueError, match=words):
        diffusion.training_losses(learned, X, t)
    with pytest.raises(ValueError, match=words):
        diffusion.p_sample(learned, X, t)


def test_errors_on_tensors() -> None:
    diffusion = create_diffusion("50")
    with pytest.raises(ValueError, match=r"x_start: expected floating point \(N, C, ...\), came torch.int64"):
        diffusion.q_sample(X.long(), T)
    with pytest.raises(
        ValueError, match=r"x: expected floating point \(N, C, ...\), came torch.float32 \(2,\)"
    ):
        diffusion.p_sample(learned, X[:, 0, 0, 0], T)
    with pytest.raises(
        ValueError, match=r"noise: expected floating point \(2, 3, 4, 4\) on cpu, as x_start is, came"
    ):
        diffusion.q_sample(X, T, noise=X[:, :1])
    with pytest.raises(ValueError, match="noise: expected"):
        diffusion.training_losses(learned, X, T, noise=X[:1])
    with pytest.raises(ValueError, match="x_t: expected"):
        diffusion.q_posterior_mean_variance(X, X[:1], T)


def test_errors_on_the_models_output() -> None:
    words = r"model: expected an output of shape \(2, 6, 4, 4\) .* learn_sigma=True, came \(2, 3, 4, 4\)"
    with pytest.raises(ValueError, match=words):
        create_diffusion().training_losses(lambda x, t: x, X, T)
    with pytest.raises(
        ValueError, match=r"model: expected .*\(2, 3, 4, 4\) .* learn_sigma=False, came \(2, 6, 4, 4\)"
    ):
        create_diffusion(learn_sigma=False).p_sample(learned, X, T)
    with pytest.raises(ValueError, match="model: expected it to return a tensor .* came tuple"):
        create_diffusion().p_sample(lambda x, t: (x, x), X, T)  # type: ignore[arg-type, return-value]
