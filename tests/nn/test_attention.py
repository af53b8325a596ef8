# SPDX-License-Identifier: Apache-2.0
"""The attention layer with normalised and rotated heads, against PyTorch's own parts."""

import pytest
import torch
import torch.nn.functional as F

from dit_fast import nn as dnn
from dit_fast.ops import use_backend
from dit_fast.parity import compare


def plain(layer, x, rope):
    """nn.RMSNorm or nn.LayerNorm, complex rotation, scaled_dot_product_attention."""
    n, t, _ = x.shape
    q, k, v = layer.qkv(x).view(n, t, 3, layer.num_heads, -1).permute(2, 0, 3, 1, 4)  # (N, H, T, Dh) each
    if layer.qk_norm:
        q, k = layer.q_norm(q), layer.k_norm(k)
    if rope is not None:
        turn = torch.complex(*rope.to(x.dtype))  # (T, Dh/2)
        q, k = (torch.view_as_real(torch.view_as_complex(z.unflatten(-1, (-1, 2))) * turn).flatten(-2) for z in (q, k))
    return layer.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("rotated", [True, False])
@pytest.mark.parametrize("qk_norm", ["rms", "layer", None])
def test_it_is_what_pytorchs_parts_make(qk_norm, rotated, backend):
    torch.manual_seed(0)
    layer, x = dnn.Attention(64, 2, qk_norm), torch.randn(2, 6, 64)
    rope = dnn.rope_2d(2, 3, 32) if rotated else None
    for name, parameter in layer.named_parameters():
        if "norm" in name:
            torch.nn.init.normal_(parameter, 1.0, 0.2)
    exact = plain(layer.double(), x.double(), rope)
    wanted = torch.autograd.grad(exact.square().sum(), list(layer.parameters()))
    layer.float()
    names = ["out", *dict(layer.named_parameters())]
    with use_backend("reference"):  # the layer's own linears
        eager = plain(layer, x, rope)
    usual = torch.autograd.grad(eager.square().sum(), list(layer.parameters()))
    with use_backend(backend):
        out = layer(x, rope)
        got = torch.autograd.grad(out.square().sum(), list(layer.parameters()))
    for name, *values in zip(names, (out, *got), (eager, *usual), (exact, *wanted), strict=True):
        if name == "k_norm.bias" and not rotated:  # moves all logits of a row alike: no gradient, no relative error
            assert values[0].abs().max() < 1e-4
            continue
        _, _, ratio = compare(*(value.detach() for value in values), torch.float32)
        assert ratio <= 1.0, name


def test_names_of_its_weights():
    names = dnn.Attention(64, 2).state_dict().keys()
    assert names == {"qkv.weight", "qkv.bias", "proj.weight", "proj.bias"}
    assert dnn.Attention(64, 2, "rms").state_dict().keys() - names == {"q_norm.weight", "k_norm.weight"}
    with pytest.raises(ValueError, match="Attention: `qk_norm` must be 'rms', 'layer' or None, got 'batch'"):
        dnn.Attention(64, 2, "batch")


def test_rope_of_a_grid():
    cos, sin = dnn.rope_2d(2, 3, 8, theta=100.0)
    assert cos.shape == sin.shape == (6, 4) and cos.dtype == torch.float32
    row, column = torch.tensor([0, 0, 0, 1, 1, 1.0]), torch.tensor([0, 1, 2, 0, 1, 2.0])
    angles = torch.stack([row, row / 10, column, column / 10], 1)
    torch.testing.assert_close(cos, angles.cos())
    torch.testing.assert_close(sin, angles.sin())
    with pytest.raises(ValueError, match="rope_2d: `head_dim` must be a multiple of 4, got 6"):
        dnn.rope_2d(2, 3, 6)
