# SPDX-License-Identifier: Apache-2.0
"""Classifier-free guidance against numbers worked out by hand.

LEGEND: N batch, C channels of x; a learned-variance output has 2C: C of noise, C of variance.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dit_fast.diffusion import create_diffusion, guide, with_guidance

# Two samples of C = 4, one pixel each; conditional half first. Channel c of sample n: cond, then null.
COND = torch.tensor([[1.0, 2, 3, 4, 50, 60, 70, 80], [-1, 0, 1, 2, 51, 61, 71, 81]])
NULL = torch.tensor([[0.0, 1, 5, 2, 10, 20, 30, 40], [-3, 1, 1, 3, 11, 21, 31, 41]])
OUT = torch.cat([COND, NULL]).view(4, 8, 1, 1)


def rows(out: Tensor) -> list[list[float]]:
    return out.flatten(1).tolist()


def test_three_channels_by_hand() -> None:
    # null + 4 (cond - null): 0+4, 1+4, 5-8 | -3+8, 1-4, 1+0
    assert rows(guide(OUT, 4.0, in_channels=4)) == [
        [4, 5, -3, 4, 50, 60, 70, 80],
        [5, -3, 1, 2, 51, 61, 71, 81],
        [4, 5, -3, 2, 10, 20, 30, 40],
        [5, -3, 1, 3, 11, 21, 31, 41],
    ]


def test_all_channels_by_hand() -> None:
    expected = [
        [4, 5, -3, 10, 50, 60, 70, 80],
        [5, -3, 1, -1, 51, 61, 71, 81],
        [4, 5, -3, 10, 10, 20, 30, 40],
        [5, -3, 1, -1, 11, 21, 31, 41],
    ]
    assert rows(guide(OUT, 4.0, "all", in_channels=4)) == expected
    assert rows(guide(OUT, 4.0, 4, in_channels=4)) == expected
    # without learned variance every channel is noise
    assert rows(guide(OUT[:, :4], 4.0, "all", in_channels=4)) == [row[:4] for row in expected]


def test_fewer_than_three_channels() -> None:
    one = OUT[:, [0, 4]]  # C = 1: one noise and one variance channel, which must stay
    assert rows(guide(one, 4.0, in_channels=1)) == [[4, 50], [5, 51], [4, 10], [5, 11]]
    assert rows(guide(one, 4.0, "all", in_channels=1)) == rows(guide(one, 4.0, in_channels=1))


def test_scale_1_is_the_conditional_and_scale_0_the_null_prediction() -> None:
    assert rows(guide(OUT, 1.0, "all", in_channels=4))[:2] == COND.tolist()
    assert rows(guide(OUT, 0.0, "all", in_channels=4))[2:] == NULL.tolist()


def test_the_scale_may_be_a_tensor_and_inputs_are_left_alone() -> None:
    before = OUT.clone()
    scale = torch.tensor([4.0, 1.0]).view(2, 1, 1, 1)
    out = guide(OUT, scale, in_channels=4)
    assert rows(out)[0][:3] == [4, 5, -3] and rows(out)[1][:3] == [-1, 0, 1]
    assert torch.equal(OUT, before)


def test_low_precision_is_rounded_once() -> None:
    out = torch.randn(6, 8, 3, 3).bfloat16()
    exact = guide(out.double(), 4.0, in_channels=4)
    assert torch.equal(guide(out, 4.0, in_channels=4), exact.bfloat16())


@pytest.mark.parametrize("bad", [0, -1, 5, "some", True, 2.0, None])
def test_bad_cfg_channels(bad: object) -> None:
    with pytest.raises(ValueError, match=f"cfg_channels: expected .* came {bad!r}"):
        guide(OUT, 4.0, bad, in_channels=4)  # type: ignore[arg-type]


def test_bad_shapes() -> None:
    with pytest.raises(
        ValueError, match="cfg_channels: expected 'all', 3 or a count from 1 to in_channels=1, came 2"
    ):
        guide(OUT, 4.0, 2, in_channels=1)
    with pytest.raises(
        ValueError, match=r"model_out: expected floating point \(2N, C, ...\), came torch.float32 \(3, 8"
    ):
        guide(OUT[:3], 4.0, in_channels=4)
    for bad in (0, 9):
        with pytest.raises(
            ValueError, match=f"in_channels: expected 1 to 8, model_out's channels, came {bad}"
        ):
            guide(OUT, 4.0, in_channels=bad)


def model(x: Tensor, t: Tensor, y: Tensor, shift: float = 0.0) -> Tensor:
    y = y.view(-1, 1, 1, 1).to(x)
    return torch.cat([torch.sin(x) * y + shift, torch.cos(x) - y + t.view(-1, 1, 1, 1) / 1000], dim=1)


@pytest.mark.parametrize("null_y", [10, torch.tensor([10])])
@pytest.mark.parametrize("cfg_channels", [3, "all"])
def test_wrapper(null_y: int | Tensor, cfg_channels: int) -> None:
    x, t, y = torch.randn(2, 4, 3, 3, dtype=torch.float64), torch.tensor([5, 900]), torch.tensor([1, 2])
    out = with_guidance(model, 4.0, null_y, cfg_channels)(x, t, y, shift=0.5)
    cond, null = model(x, t, y, 0.5), model(x, t, torch.tensor([10, 10]), 0.5)
    k = 4 if cfg_channels == "all" else 3
    torch.testing.assert_close(out[:, :k], null[:, :k] + 4 * (cond - null)[:, :k], rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(out[:, k:], cond[:, k:], rtol=0, atol=0)


def test_wrapper_samples_as_the_doubled_batch_does() -> None:
    """The callable for a sampler, against a model that doubles its first half as `forward_with_cfg` does."""
    diffusion = create_diffusion("10")
    x, y = torch.randn(2, 4, 3, 3, dtype=torch.float64), torch.tensor([1, 2])

    def doubled(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        half = x[: len(x) // 2]
        return guide(model(torch.cat([half, half]), t, y), 1.5, in_channels=4)

    plain = diffusion.ddim_sample_loop(with_guidance(model, 1.5, 10), x.shape, x, model_kwargs={"y": y})
    twice = diffusion.ddim_sample_loop(
        doubled, (4, 4, 3, 3), torch.cat([x, x]), model_kwargs={"y": torch.cat([y, torch.tensor([10, 10])])}
    )
    torch.testing.assert_close(plain, twice[:2], rtol=1e-12, atol=1e-12)
