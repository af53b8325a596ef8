# SPDX-License-Identifier: Apache-2.0
"""Models of the lineage, patched, compute what they did, and the report says what is fused in them."""

import copy

import pytest
import torch
from torch import nn

import dit_fast
from dit_fast.integrations import parts

from .compare import assert_same
from .lookalikes import (
    Attention,
    Block,
    FinalLayer,
    LightningBlock,
    MaskDiTLike,
    Mlp,
    Rope,
    batch,
    dit_like,
    live,
    modulate,
)

ALL = {
    "x_embedder": ("patch_embed",),
    "block": ("adaln", "gated_residual_adaln", "gated_residual"),
    "attn": ("attention",),
    "mlp": ("linear_gelu",),
    "final_layer": ("adaln",),
}


def fused(report):
    """What is fused, by the last part of the modules' names."""
    return {("block" if r.name[-1].isdigit() else r.name.split(".")[-1]): r.fused for r in report.replaced}


MODELS = {
    "dit": (lambda: dit_like(), ALL),
    "eps of its own": (lambda: dit_like(eps=1e-2), ALL),
    "normed heads": (lambda: dit_like(qk_norm=nn.LayerNorm), ALL),
    "logits in the open": (lambda: dit_like(fused_attn=False), ALL),
    "repa": (lambda: dit_like(tap=0), ALL),
    "lightning": (
        lambda: dit_like(block=LightningBlock, rope=True, qk_norm=nn.RMSNorm),
        {k: v for k, v in ALL.items() if k != "mlp"},
    ),
    "lightning without shifts or rope": (
        lambda: dit_like(block=LightningBlock, shifts=False),
        {k: v for k, v in ALL.items() if k != "mlp"},
    ),
    "rms norms": (lambda: dit_like(norm=lambda: nn.RMSNorm(48)), {**ALL, "block": ("gated_residual",)}),
    "affine norms": (lambda: dit_like(norm=lambda: nn.LayerNorm(48)), {**ALL, "block": ("gated_residual",)}),
    "erf gelu": (
        lambda: dit_like(mlp=Mlp(48, 96, nn.GELU())),
        {k: v for k, v in ALL.items() if k != "mlp"},
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_patched_models_compute_what_they_did(name):
    make, expected = MODELS[name]
    unpatched = make()
    patched = copy.deepcopy(unpatched)
    assert fused(dit_fast.patch(patched)) == expected
    assert_same(patched, unpatched, batch(), torch.float32)
    assert_same(patched, unpatched, batch(), torch.bfloat16)
    assert_same(patched, unpatched, batch(), torch.float32, autocast=torch.bfloat16)


@pytest.mark.parametrize("tokens", (1, 3, 16))
def test_maskdit_of_any_number_of_tokens(tokens):
    unpatched = live(MaskDiTLike())
    patched = copy.deepcopy(unpatched)
    assert len(dit_fast.patch(patched).replaced) == 10
    generator = torch.Generator().manual_seed(0)
    x, c = torch.randn(3, 16, 48, generator=generator), torch.randn(3, 48, generator=generator)
    keep = torch.rand(3, 16, generator=generator).argsort(dim=1)[:, :tokens]
    assert_same(patched, unpatched, (x, c, keep))


def test_dropout_in_training_falls_as_before():
    unpatched = dit_like(attn_drop=0.5, proj_drop=0.5, mlp=Mlp(48, 96, drop=0.5)).train()
    patched = copy.deepcopy(unpatched)
    assert fused(dit_fast.patch(patched)) == ALL
    assert_same(patched, unpatched, batch())
    one = live(Mlp(48, 96, drop=0.5, one_drop=True)).train()
    patched = copy.deepcopy(one)
    assert dit_fast.patch(patched).replaced
    assert_same(patched, one, (torch.randn(2, 5, 48),))


class MaskedBlock(Block):
    """Hands a mask to its attention, and uses ids itself."""

    def forward(self, x, c, mask=None, ids=None):
        a, b, g, d, e, f = self.adaLN_modulation(c).chunk(6, dim=1)
        x = x if ids is None else x[:, ids]
        x = x + g.unsqueeze(1) * self.attn(modulate(self.norm1(x), a, b), mask)
        return x + f.unsqueeze(1) * self.mlp(modulate(self.norm2(x), d, e))


def test_extra_arguments_reach_the_attention_or_the_blocks_own_forward(monkeypatch):
    unpatched = live(MaskedBlock(48))
    patched = copy.deepcopy(unpatched)
    dit_fast.patch(patched)
    fusions = []
    monkeypatch.setattr(parts.ops, "adaln", lambda *a, real=parts.ops.adaln: (fusions.append(1), real(*a))[1])
    x, c = torch.randn(2, 5, 48), torch.randn(2, 48)
    mask = torch.randn(2, 1, 5, 5)
    for args, count in (((), 1), ((mask,), 1), ((None, torch.tensor([4, 0, 0])), 0)):
        fusions.clear()
        assert_same(patched, unpatched, (x, c, *args))
        assert len(fusions) == count, args
    for wrong in ({"masks": 1}, {"x": x}):
        with pytest.raises(TypeError):
            patched(x, c, **wrong)
    assert torch.equal(patched(c=c, x=x, mask=mask), patched(x, c, mask))


def test_a_conditioning_of_one_row_or_per_token_runs_as_before():
    unpatched = live(Block(48))
    patched = copy.deepcopy(unpatched)
    dit_fast.patch(patched)
    x = torch.randn(3, 5, 48)
    assert_same(patched, unpatched, (x, torch.randn(1, 48)))
    assert_same(patched, unpatched, (x[:, :0], torch.randn(3, 48)))


def test_patch_embed_refuses_the_sizes_it_did():
    model = dit_like()
    dit_fast.patch(model)
    with pytest.raises(AssertionError, match="does not match"):
        model.x_embedder(torch.randn(1, 4, 6, 8))


def test_attention_with_a_rope_of_its_own():
    class OwnRope(Attention):
        def __init__(self, dim):
            super().__init__(dim)
            self.rope = Rope(dim // 2, 9)

        def forward(self, x):
            q, k, v = self.heads(x)
            return self.after(x, self.rope(self.q_norm(q)), self.rope(self.k_norm(k)), v)

    unpatched = live(OwnRope(48))
    patched = copy.deepcopy(unpatched)
    assert fused(dit_fast.patch(nn.ModuleDict({"attn": patched}))) == {"attn": ("attention",)}
    assert_same(patched, unpatched, (torch.randn(2, 9, 48),))


def test_a_final_layer_alone():
    unpatched = live(FinalLayer(48, 8, eps=1e-3))
    patched = copy.deepcopy(unpatched)
    dit_fast.patch(patched)
    assert_same(patched, unpatched, (torch.randn(2, 5, 48) * 0.05, torch.randn(2, 48)))
