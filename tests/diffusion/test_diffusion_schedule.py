# SPDX-License-Identifier: Apache-2.0
"""Beta schedules, respacing and the coefficient tables.

LEGEND: T timesteps of the full chain, K of the respaced one; ab = alpha-bar.
"""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch

from dit_fast.diffusion import create_diffusion, schedule, space_timesteps
from dit_fast.diffusion.schedule import make_betas


def test_linear_betas_and_their_scaling() -> None:
    betas = make_betas("linear", 1000)
    expected = [1e-4 + (0.02 - 1e-4) * i / 999 for i in range(1000)]
    torch.testing.assert_close(betas, torch.tensor(expected, dtype=torch.float64), rtol=1e-14, atol=0)
    short = make_betas("linear", 250)
    assert short[0].item() == pytest.approx(4e-4, rel=1e-14) and short[-1].item() == pytest.approx(
        0.08, rel=1e-14
    )


def test_cosine_betas_follow_the_cosine_until_the_cap() -> None:
    betas = make_betas("squaredcos_cap_v2", 1000)

    def curve(i: int) -> float:
        return math.cos((i / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2

    ab = torch.cumprod(1 - betas, 0)
    for i in (0, 1, 499, 998):
        assert ab[i].item() == pytest.approx(curve(i + 1) / curve(0), rel=1e-9)
    assert betas[-1].item() == 0.999 and betas[-2].item() < 0.999


def test_all_timesteps() -> None:
    assert space_timesteps(1000, "") == space_timesteps(1000, None) == tuple(range(1000))


def test_respacing_250() -> None:
    kept = space_timesteps(1000, "250")
    assert len(kept) == 250
    assert kept[:4] == (0, 4, 8, 12) and kept[-3:] == (991, 995, 999)
    assert kept == space_timesteps(1000, 250) == space_timesteps(1000, [250])


@pytest.mark.parametrize("count", [2, 5, 25, 100, 333, 999, 1000])
def test_one_section_is_evenly_spaced_between_both_ends(count: int) -> None:
    kept = space_timesteps(1000, count)
    assert (kept[0], kept[-1], len(set(kept))) == (0, 999, count)
    assert all(abs(k - Fraction(999 * i, count - 1)) <= Fraction(1, 2) for i, k in enumerate(kept))


def test_respacing_ddim50() -> None:
    assert space_timesteps(1000, "ddim50") == tuple(range(0, 1000, 20))


def test_respacing_sections() -> None:
    kept = space_timesteps(1000, "10,10,20")
    assert len(kept) == 40 and kept == space_timesteps(1000, [10, 10, 20]) == space_timesteps(
        1000, (10, 10, 20)
    )
    # 1000 = 334 + 333 + 333, and each section runs from its first to its last timestep.
    assert (kept[0], kept[9], kept[10], kept[19], kept[20], kept[39]) == (0, 333, 334, 666, 667, 999)
    assert (
        kept[1] == 37 and kept[11] == 334 + 37 and kept[21] == 667 + 17
    )  # 333/9, 332/9 = 36.9, 332/19 = 17.5-
    assert space_timesteps(10, "1,2") == (0, 5, 9)


@pytest.mark.parametrize(
    "bad", ["ddim30", "ddim0", "ddim", "ddim5x", "1001", "0", "-5", "a,b", "10,,20", "500,10,10", 0]
)
def test_respacing_that_cannot_be_met(bad: str | int) -> None:
    with pytest.raises(ValueError, match=f"timestep_respacing: expected .*{bad}"):
        create_diffusion(timestep_respacing=bad)


@pytest.mark.parametrize("bad", [[], [1.5], True, 2.5, [400, 400, "x"]])
def test_respacing_of_a_wrong_type(bad: object) -> None:
    with pytest.raises(ValueError, match="timestep_respacing: expected"):
        create_diffusion(timestep_respacing=bad)  # type: ignore[arg-type]


def test_ddim30_says_which_counts_are_near() -> None:
    with pytest.raises(
        ValueError, match=r"'ddimN' with N a divisor of diffusion_steps=1000 \(nearest: 25 or 40\)"
    ):
        space_timesteps(1000, "ddim30")


def test_unknown_schedule_and_bad_steps() -> None:
    with pytest.raises(
        ValueError, match="noise_schedule: expected 'linear' or 'squaredcos_cap_v2', came 'sqrt'"
    ):
        create_diffusion(noise_schedule="sqrt")
    with pytest.raises(ValueError, match="diffusion_steps: expected more than 20"):
        create_diffusion(diffusion_steps=20)
    for bad in (0, -1, 10.0, True):
        with pytest.raises(ValueError, match="diffusion_steps: expected an int >= 1"):
            create_diffusion(diffusion_steps=bad)  # type: ignore[arg-type]
    assert create_diffusion(diffusion_steps=21).num_timesteps == 21


@pytest.mark.parametrize("respacing", ["", "250", "ddim50", "10,10,20", "1"])
@pytest.mark.parametrize("noise_schedule", ["linear", "squaredcos_cap_v2"])
def test_respacing_keeps_alpha_bar(noise_schedule: str, respacing: str) -> None:
    diffusion = create_diffusion(respacing, noise_schedule)
    kept = list(space_timesteps(1000, respacing))
    full = torch.cumprod(1 - make_betas(noise_schedule, 1000), 0)
    assert diffusion.num_timesteps == len(kept) and list(diffusion.timestep_map) == kept
    torch.testing.assert_close(diffusion.alphas_cumprod, full[kept], rtol=0, atol=0)
    alphas = 1 - diffusion.betas
    rounding = float((2**-53 / alphas).sum()) + 4 * len(kept) * 2**-53  # of 1 - b, and of the products
    torch.testing.assert_close(torch.cumprod(alphas, 0), full[kept], rtol=rounding, atol=0)
    assert bool((diffusion.betas > 0).all() and (diffusion.betas < 1).all())
    for row in diffusion.schedule.at(torch.arange(len(kept)), torch.zeros(len(kept), 1)):
        assert bool(row.isfinite().all())


def test_table_is_copied_to_a_device_once_and_survives_inference_mode() -> None:
    with torch.inference_mode():
        diffusion = create_diffusion("50")
        x, t = torch.zeros(2, 1), torch.tensor([0, 49])
        diffusion.schedule.at(t, x)
        tables = diffusion.schedule._tables(x.device)
    assert diffusion.schedule._tables(x.device) is tables
    live = torch.ones(2, 1, requires_grad=True)
    (diffusion.schedule.at(t, live).sqrt_ab * live * live).sum().backward()
    assert live.grad is not None and bool((live.grad > 0).all())


def test_device_without_float64_gets_one_float32_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "NO_FLOAT64", frozenset({"cpu"}))
    diffusion = create_diffusion("50")
    x, t = torch.zeros(50, 1), torch.arange(50)
    assert diffusion.schedule._tables(x.device)[0].dtype == torch.float32
    half = create_diffusion("50").schedule
    monkeypatch.undo()
    for single, double in zip(diffusion.schedule.at(t, x), half.at(t, x.double()), strict=True):
        torch.testing.assert_close(single.double(), double, rtol=2**-24, atol=0)  # half an ulp


def test_lookup_dtypes_and_shapes() -> None:
    diffusion = create_diffusion("50")
    t = torch.tensor([3, 1, 49])
    for dtype, expected in (
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64,) * 2,
    ):
        c = diffusion.schedule.at(t, torch.zeros(3, 4, 5, 6, dtype=dtype))
        assert {row.dtype for row in c} == {expected} and {row.shape for row in c} == {
            torch.Size((3, 1, 1, 1))
        }
    torch.testing.assert_close(c.sqrt_ab.flatten(), diffusion.alphas_cumprod[t].sqrt(), rtol=1e-15, atol=0)
