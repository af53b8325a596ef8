# SPDX-License-Identifier: Apache-2.0
"""Flow matching on Gaussian data, where the velocity field and its flow are known in closed form.

Data N(mu, s^2) in every element: x_t ~ N(t mu, var(t)), var(t) = t^2 s^2 + (1 - t)^2, and the flow takes noise z to
t mu + sqrt(var(t)) z. LEGEND: N batch, C channels, H height, W width.
"""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from dit_fast.diffusion import create_diffusion, create_flow, with_guidance
from dit_fast.models import DiT
from dit_fast.parity import enliven

MU, S = 0.4, 0.3


def column(t: Tensor, like: Tensor) -> Tensor:
    return t.view(-1, *[1] * (like.dim() - 1))


def variance(t: Tensor) -> Tensor:
    return (t * S) ** 2 + (1 - t) ** 2


def exact(x: Tensor, t: Tensor) -> Tensor:
    """E[x_1 - x_0 | x_t]."""
    t = column(t, x)
    return MU + (t * S**2 - (1 - t)) / variance(t) * (x - t * MU)


def exact_flow(z: Tensor, t: float) -> Tensor:
    return t * MU + math.sqrt(variance(torch.tensor(t, dtype=torch.float64)).item()) * z


def error(method: Any, steps: int, z: Tensor) -> float:
    return (create_flow().ode_sample_loop(exact, z.shape, z, steps, method) - exact_flow(z, 1.0)).abs().max().item()


@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("heun", 2)])
def test_the_solver_has_its_order_and_reaches_the_data(method: str, order: int) -> None:
    z = torch.randn(2, 1, 4, 4, dtype=torch.float64)
    errors = [error(method, steps, z) for steps in (80, 160, 320)]
    measured = [math.log2(a / b) for a, b in pairwise(errors)]
    assert all(abs(m - order) < 0.1 for m in measured), (errors, measured)  # a wrong order is off by 1
    assert errors[-1] < 0.02


def test_every_step_follows_the_path() -> None:
    z = torch.randn(2, 1, 4, 4, dtype=torch.float64)
    for i, out in enumerate(create_flow().ode_sample_loop_progressive(exact, z.shape, z, 200, "heun")):
        torch.testing.assert_close(out["sample"], exact_flow(z, (i + 1) / 200), rtol=0, atol=1e-3)
    assert i == 199


def test_euler_and_heun_by_hand() -> None:
    """v = x + 10 t at x = 2 from t = 0.25 to 0.75."""
    flow = create_flow()
    x, t, t_next = (torch.full(shape, v, dtype=torch.float64) for shape, v in (((1, 1), 2), ((1,), 0.25), ((1,), 0.75)))

    def model(x: Tensor, t: Tensor) -> Tensor:
        return x + 10 * column(t, x)

    euler, heun = (flow.flow_step(model, x, t, t_next, method) for method in ("euler", "heun"))
    assert euler["sample"].item() == 2 + 0.5 * 4.5
    assert heun["sample"].item() == 2 + 0.5 * (4.5 + (4.25 + 7.5)) / 2
    assert euler["pred_xstart"].item() == heun["pred_xstart"].item() == 2 + 0.75 * 4.5
    back = flow.flow_step(model, euler["sample"], t_next, t)
    assert back["sample"].item() == 4.25 - 0.5 * 11.75  # either direction


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_the_target_is_data_minus_noise_and_noise_is_at_0(dtype: torch.dtype) -> None:
    x, noise = torch.randn(3, 2, 4, 4).to(dtype), torch.randn(3, 2, 4, 4).to(dtype)
    t = torch.tensor([0.0, 0.375, 1.0])
    arithmetic = torch.promote_types(dtype, torch.float32)
    seen: dict[str, Tensor] = {}

    def model(x: Tensor, t: Tensor, y: int) -> Tensor:
        assert y == 7
        seen.update(x=x, t=t)
        return torch.ones_like(x)

    loss = create_flow().training_losses(model, x, t, {"y": 7}, noise)["loss"]
    assert seen["x"].dtype == dtype and seen["t"].dtype == arithmetic and torch.equal(seen["t"], t.to(arithmetic))
    assert torch.equal(seen["x"][0], noise[0]) and torch.equal(seen["x"][2], x[2])
    wide_x, wide_noise = x.double(), noise.double()
    torch.testing.assert_close(seen["x"][1], (0.375 * wide_x + 0.625 * wide_noise)[1].to(dtype))
    assert torch.equal(create_flow().interpolate(x, t, noise), seen["x"])
    expected = (1 - (wide_x - wide_noise)).square().flatten(1).mean(1)
    assert loss.dtype == arithmetic
    torch.testing.assert_close(loss, expected.to(arithmetic))


def test_the_exact_field_has_the_least_loss(generator: torch.Generator) -> None:
    """Var(x_1 - x_0 | x_t) = s^2 / var(t), within 5 standard errors; any other field has more."""
    x = MU + S * torch.randn(3, 1, 256, 256, dtype=torch.float64, generator=generator)
    t = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    state = generator.get_state()
    least = create_flow().training_losses(exact, x, t, generator=generator)["loss"]
    expected = S**2 / variance(t)
    assert bool(((least / expected - 1).abs() < 5 * math.sqrt(2 / 256**2)).all())
    more = create_flow().training_losses(lambda x, t: exact(x, t) + 0.2, x, t, generator=generator.set_state(state))
    torch.testing.assert_close(more["loss"], expected + 0.04, rtol=0.05, atol=0)


def test_the_gradient_is_that_of_the_squared_error() -> None:
    weight = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    x, noise = torch.randn(2, 1, 3, 3, dtype=torch.float64), torch.randn(2, 1, 3, 3, dtype=torch.float64)
    t = torch.tensor([0.25, 0.5], dtype=torch.float64)
    create_flow().training_losses(lambda x, t: weight * x, x, t, None, noise)["loss"].sum().backward()
    x_t = column(t, x) * x + (1 - column(t, x)) * noise
    expected = (2 * x_t * (weight.detach() * x_t - (x - noise))).sum() / 9
    assert weight.grad is not None
    torch.testing.assert_close(weight.grad, expected)


def test_of_a_learn_sigma_model_the_first_channels_are_the_velocity() -> None:
    def doubled(x: Tensor, t: Tensor) -> Tensor:
        return torch.cat([exact(x, t), torch.full_like(x, math.nan)], dim=1)

    flow, z = create_flow(), torch.randn(2, 3, 4, 4)
    assert torch.equal(flow.ode_sample_loop(doubled, z.shape, z, 4), flow.ode_sample_loop(exact, z.shape, z, 4))
    losses = [flow.training_losses(m, z, torch.rand(2), None, -z)["loss"] for m in (doubled, exact)]
    assert bool(losses[0].isfinite().all())
    with pytest.raises(ValueError, match=r"model: expected an output of shape \(2, 3, 4, 4\)"):
        flow.ode_sample_loop(lambda x, t: torch.cat([x, x, x], 1), z.shape, z, 4)


def test_guidance_is_on_velocities() -> None:
    """exact + w (exact - 0.1) of the guided channels; the fourth is left as it is."""

    def model(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return torch.where(column(y, x) == 9, 0.1, exact(x, t))

    flow, z = create_flow(), torch.randn(2, 4, 4, 4, dtype=torch.float64)
    t, y = torch.tensor([0.3, 0.6], dtype=torch.float64), torch.tensor([1, 2])
    guided = flow.velocity(with_guidance(model, 3.0, 9), z, t, {"y": y})
    torch.testing.assert_close(guided[:, :3], 0.1 + 3 * (exact(z, t)[:, :3] - 0.1))
    torch.testing.assert_close(guided[:, 3:], exact(z, t)[:, 3:])
    out = flow.ode_sample_loop(with_guidance(model, 1.0, 9), z.shape, z, 5, "heun", {"y": y})
    torch.testing.assert_close(out, flow.ode_sample_loop(exact, z.shape, z, 5, "heun"))


def test_uniform_and_logit_normal_times() -> None:
    n = 40_000
    for times in ("uniform", "logit_normal"):
        t = create_flow(times).draw_times(n, generator=torch.Generator().manual_seed(1))
        assert t.dtype == torch.float32 and t.shape == (n,) and float(t.min()) >= 0 and float(t.max()) < 1
        assert torch.equal(t, create_flow(times).draw_times(n, generator=torch.Generator().manual_seed(1)))
        u = t.double() if times == "uniform" else torch.special.ndtr(torch.logit(t.double()))  # uniform again
        edges = torch.arange(1, n + 1) / n
        assert float((u.sort().values - edges).abs().max()) < 1.95 / math.sqrt(n)  # Kolmogorov-Smirnov at 0.1%


def test_steps_of_the_chain_are_drawn_uniformly() -> None:
    diffusion = create_diffusion("10")
    t = diffusion.draw_times(20_000, generator=torch.Generator().manual_seed(1))
    assert t.dtype == torch.int64 and t.shape == (20_000,)
    counts = t.bincount(minlength=10).double()
    assert len(counts) == 10 and float(((counts - 2000) ** 2 / 2000).sum()) < 27.9  # chi squared, 9 degrees, 0.1%
    assert torch.equal(t, diffusion.draw_times(20_000, generator=torch.Generator().manual_seed(1)))


def test_loops_keep_dtype_draw_from_the_generator_and_leave_gradients_alone() -> None:
    flow = create_flow()
    first, second = (
        flow.ode_sample_loop(exact, (2, 1, 3, 3), steps=3, device="cpu", generator=torch.Generator().manual_seed(k))
        for k in (1, 2)
    )
    again = flow.ode_sample_loop(exact, (2, 1, 3, 3), steps=3, generator=torch.Generator().manual_seed(1))
    assert torch.equal(first, again) and not torch.equal(first, second)
    for dtype in (torch.bfloat16, torch.float64):
        z = torch.randn(2, 1, 3, 3, dtype=dtype)
        for out in flow.ode_sample_loop_progressive(lambda x, t: exact(x, t).bfloat16(), z.shape, z, 2, "heun"):
            assert torch.is_grad_enabled() and out["sample"].dtype == out["pred_xstart"].dtype == dtype
    assert flow.step_times(4).tolist() == [0, 0.25, 0.5, 0.75, 1] and flow.step_times(49)[-1] == 1
    assert flow.step_times(3, dtype=torch.float64)[1] == 1 / 3


def test_a_dit_learns_through_it() -> None:
    model = enliven(DiT(input_size=4, patch_size=2, in_channels=1, hidden_size=32, depth=1, num_heads=1, num_classes=3,
                        learn_sigma=False))  # fmt: skip
    flow, y = create_flow("logit_normal"), torch.tensor([0, 1])
    flow.training_losses(model, torch.randn(2, 1, 4, 4), flow.draw_times(2), {"y": y})["loss"].mean().backward()
    silent = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not silent
    out = flow.ode_sample_loop(model, (2, 1, 4, 4), steps=2, model_kwargs={"y": y})
    assert bool(out.isfinite().all()) and not out.requires_grad


def test_bad_arguments_are_named() -> None:
    flow, x = create_flow(), torch.randn(2, 1, 4, 4)
    bad: list[tuple[Any, str]] = [
        (lambda: create_flow("cosine"), "times: expected 'uniform' or 'logit_normal', came 'cosine'"),
        (lambda: flow.interpolate(x, torch.tensor([0, 1])), r"t: expected floating point \(2,\) on cpu, came"),
        (lambda: flow.interpolate(x, torch.tensor([0.5, 1.5])), "t: expected values from 0 to 1, came 0.5 to 1.5"),
        (lambda: flow.interpolate(x, torch.tensor([0.5, math.nan])), "t: expected values from 0 to 1, came"),
        (lambda: flow.interpolate(x, torch.rand(3)), r"t: expected floating point \(2,\)"),
        (lambda: flow.interpolate(x, torch.rand(2), x[:1]), r"noise: expected floating point \(2, 1, 4, 4\)"),
        (lambda: flow.flow_step(exact, x, torch.rand(2), torch.rand(1)), "t_next: expected floating point"),
        (lambda: flow.flow_step(exact, x, torch.rand(2), torch.rand(2), "rk4"), "method: expected 'euler' or 'heun'"),
        (lambda: flow.ode_sample_loop(exact, x.shape, x, 0), "steps: expected an int >= 1, came 0"),
        (lambda: flow.ode_sample_loop(exact, x.shape, x, 2, "rk4"), "method: expected 'euler' or 'heun', came 'rk4'"),
        (lambda: flow.ode_sample_loop(exact, (1, 1), x, 2), r"noise: expected floating point \(1, 1\)"),
    ]  # fmt: skip
    for call, message in bad:
        with pytest.raises(ValueError, match=message):
            call()


def test_a_step_compiles_whole() -> None:
    flow = create_flow()

    def step(x: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
        return flow.flow_step(exact, x, t, t_next, "heun")["sample"]

    inputs = torch.randn(2, 1, 4, 4), torch.tensor([0.25, 0.5]), torch.tensor([0.5, 0.75])
    torch.testing.assert_close(torch.compile(step, fullgraph=True, backend="eager")(*inputs), step(*inputs))
