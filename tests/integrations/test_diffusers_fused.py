# SPDX-License-Identifier: Apache-2.0
"""The ops with the calling conventions of diffusers: shapes and dtypes of the plain expression, whatever comes."""

import itertools

import pytest
import torch
from diffusers.models.normalization import FP32LayerNorm
from torch import nn

from dit_fast.integrations.diffusers import fused

from .diffusers_parity import counted

N, T, D = 2, 5, 24
DTYPES = torch.float32, torch.bfloat16


def norms():
    return nn.LayerNorm(D, 1e-2, elementwise_affine=False), FP32LayerNorm(D, 1e-2, elementwise_affine=False)


def tensors(seed=0):
    g = torch.Generator().manual_seed(seed)
    x, y = torch.randn(2, N, T, D, generator=g)
    return x, y, *torch.randn(3, N, 1, D, generator=g)


def plain(norm, x, y, gate, shift, scale, cast=None):
    x_new = x + gate * y
    h, h_new = norm(x), norm(x_new)
    if cast is not None:
        h, h_new = h.to(cast), h_new.to(cast)
    return x_new, h * (1 + scale) + shift, h_new * (1 + scale) + shift, x_new


def ours(norm, x, y, gate, shift, scale, cast=None):
    x_new, h_new = fused.gated_residual_adaln(norm, x, y, gate, shift, scale, cast)
    return x_new, fused.adaln(norm, x, shift, scale, cast), h_new, fused.gated_residual(x, y, gate)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtypes", list(itertools.product(DTYPES, repeat=3)))
def test_results_have_the_dtypes_of_the_plain_expression(dtypes, autocast):
    x, y, *rows = tensors()
    x, y, rows = x.to(dtypes[0]), y.to(dtypes[1]), [row.to(dtypes[2]) for row in rows]
    for norm, cast in itertools.product(norms(), (None, x.dtype)):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            expected, got = plain(norm, x, y, *rows, cast=cast), ours(norm, x, y, *rows, cast=cast)
        for e, g in zip(expected, got, strict=True):
            assert e.dtype == g.dtype and e.shape == g.shape
            torch.testing.assert_close(g.float(), e.float(), rtol=2**-6, atol=2**-6)


@pytest.mark.parametrize(
    "shape,op",
    [((N, D), True), ((N, 1, D), True), ((1, D), True), ((1, 1, D), True), ((N, T, D), False), ((1, T, D), False)],
)
def test_rows_are_fused_and_a_modulation_a_token_is_not(shape, op, monkeypatch):
    x, y, *_ = tensors()
    rows = torch.randn(3, *shape)
    broadcast = [row.unsqueeze(1) if row.dim() == 2 else row for row in rows]
    with counted(monkeypatch) as calls:
        got = ours(norms()[0], x, y, *rows)
    assert set(calls) == ({"adaln", "gated_residual", "gated_residual_adaln"} if op else set())
    for e, g in zip(plain(norms()[0], x, y, *broadcast), got, strict=True):
        torch.testing.assert_close(g, e)


def test_a_norm_with_weights_or_of_another_kind_is_called(monkeypatch):
    x, y, *rows = tensors()
    affine = nn.LayerNorm(D)
    nn.init.normal_(affine.weight)
    for norm in (affine, nn.RMSNorm(D, elementwise_affine=False), nn.Identity()):
        with counted(monkeypatch) as calls:
            got = ours(norm, x, y, *rows)
        assert set(calls) == {"gated_residual"}
        for e, g in zip(plain(norm, x, y, *rows), got, strict=True):
            torch.testing.assert_close(g, e)


def test_grids_of_tokens_are_computed_as_before():
    x, y, *rows = (t.unsqueeze(1) for t in tensors())  # (N, 1, T, D)
    for e, g in zip(plain(norms()[0], x, y, *rows), ours(norms()[0], x, y, *rows), strict=True):
        assert torch.equal(e, g)


def test_float16_is_clipped_and_nothing_else():
    assert fused.clip(torch.tensor([float("inf")], dtype=torch.float16)).item() == 65504
    assert fused.clip(torch.tensor([float("inf")])).isinf().all()
