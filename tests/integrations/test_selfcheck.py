# SPDX-License-Identifier: Apache-2.0
"""Forks that look like a DiT and compute something else are left alone, each with its reason, and run as before."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import dit_fast

from .compare import assert_same
from .lookalikes import Attention, Block, FinalLayer, LightningBlock, Mlp, PatchEmbed, SwiGLU, live, modulate


class Parts(Block):
    """A block whose forward is one expression of the six parts of its modulation."""

    def forward(self, x, c):
        a, b, g, d, e, f = (m.unsqueeze(1) for m in self.adaLN_modulation(c).chunk(6, dim=1))
        return self.compute(x, a, b, g, d, e, f)


def variant(compute):
    class Variant(Parts):
        def compute(self, x, a, b, g, d, e, f):
            return compute(self, x, a, b, g, d, e, f)

    return Variant


def order(s, x, a, b, g, d, e, f):
    x = x + g * s.attn(s.norm1(x) * (1 + a) + b)
    return x + f * s.mlp(s.norm2(x) * (1 + e) + d)


def gate_last(s, x, a, b, g, d, e, f):
    x = x + f * s.attn(s.norm1(x) * (1 + b) + a)
    return x + g * s.mlp(s.norm2(x) * (1 + e) + d)


def no_one(s, x, a, b, g, d, e, f):
    x = x + g * s.attn(s.norm1(x) * b + a)
    return x + f * s.mlp(s.norm2(x) * (1 + e) + d)


def no_residual(s, x, a, b, g, d, e, f):
    x = x + g * s.attn(s.norm1(x) * (1 + b) + a)
    return f * s.mlp(s.norm2(x) * (1 + e) + d)


def tanh_gate(s, x, a, b, g, d, e, f):
    x = x + g.tanh() * s.attn(s.norm1(x) * (1 + b) + a)
    return x + f * s.mlp(s.norm2(x) * (1 + e) + d)


def post_norm(s, x, a, b, g, d, e, f):
    x = x + g * (s.norm1(s.attn(x)) * (1 + b) + a)
    return x + f * (s.norm2(s.mlp(x)) * (1 + e) + d)


def parallel(s, x, a, b, g, d, e, f):
    return x + g * s.attn(s.norm1(x) * (1 + b) + a) + f * s.mlp(s.norm2(x) * (1 + e) + d)


def other_eps(s, x, a, b, g, d, e, f):
    x = x + g * s.attn(F.layer_norm(x, x.shape[-1:], eps=1e-5) * (1 + b) + a)
    return x + f * s.mlp(s.norm2(x) * (1 + e) + d)


def detached(s, x, a, b, g, d, e, f):
    x = x + g * s.attn(s.norm1(x) * (1 + b) + a).detach()
    return x + f * s.mlp(s.norm2(x) * (1 + e) + d)


def swapped(s, x, a, b, g, d, e, f):
    x = x + g * s.mlp(s.norm1(x) * (1 + b) + a)
    return x + f * s.attn(s.norm2(x) * (1 + e) + d)


def dropped(s, x, a, b, g, d, e, f):
    x = x + g * F.dropout(s.attn(s.norm1(x) * (1 + b) + a), 0.5, s.training)
    return x + f * s.mlp(s.norm2(x) * (1 + e) + d)


@pytest.mark.parametrize(
    "compute",
    (order, gate_last, no_one, no_residual, tanh_gate, post_norm, parallel, other_eps, detached, swapped, dropped),
    ids=lambda f: f.__name__,
)
def test_blocks_of_other_arithmetic(compute):
    block = live(variant(compute)(48))
    expected = block(*inputs())
    report = dit_fast.patch(block)
    (why,) = [s.why for s in report.skipped if s.name == ""]
    mode = " in training mode" if compute is dropped else ""
    assert why.startswith(f"its forward computes something else{mode} (relative difference ")
    assert [r.name for r in report.replaced] == ["attn", "mlp"]
    torch.testing.assert_close(block(*inputs()), expected)


def inputs():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 6, 48, generator=generator), torch.randn(2, 48, generator=generator)


class Sandwich(Block):
    """Another norm after each branch."""

    def __init__(self, dim):
        super().__init__(dim)
        self.norm3 = nn.LayerNorm(dim)

    def forward(self, x, c):
        a, b, g, d, e, f = self.adaLN_modulation(c).chunk(6, dim=1)
        x = x + g.unsqueeze(1) * self.norm3(self.attn(modulate(self.norm1(x), a, b)))
        return x + f.unsqueeze(1) * self.norm3(self.mlp(modulate(self.norm2(x), d, e)))


class UsesIds(Block):
    def forward(self, x, c, ids):
        return super().forward(x[:, ids], c)


class MoreWithMask(Block):
    """Hands its mask over, and computes something else when there is one."""

    def forward(self, x, c, mask=None):
        a, b, g, d, e, f = self.adaLN_modulation(c).chunk(6, dim=1)
        g = g if mask is None else 2 * g
        x = x + g.unsqueeze(1) * self.attn(modulate(self.norm1(x), a, b), mask)
        return x + f.unsqueeze(1) * self.mlp(modulate(self.norm2(x), d, e))


class AnyArguments(Block):
    def forward(self, x, c, *args):
        return super().forward(x, c)


class Rooms(Attention):
    """Attention within windows of 4 tokens."""

    def forward(self, x):
        return super().forward(x.reshape(-1, 4, x.shape[-1])).reshape(x.shape)


class Biased(Attention):
    """Attention with a learned bias between 16 tokens."""

    def __init__(self, dim):
        super().__init__(dim)
        self.bias = nn.Parameter(torch.zeros(16, 16))

    def forward(self, x):
        return super().forward(x, attn_mask=self.bias)


class Hot(Attention):
    def forward(self, x):
        q, k, v = self.heads(x)
        return self.after(x, q * 1.01, k, v)


class Gated(Attention):
    def forward(self, x):
        return super().forward(x) * x.sigmoid()


class Residual(Mlp):
    def forward(self, x):
        return x + super().forward(x)


class Twice(FinalLayer):
    def forward(self, x, c):
        shift, scale = self.adaLN_modulation(c).chunk(2, dim=1)
        return self.linear(modulate(self.norm_final(x), scale, shift))


class Unflat(PatchEmbed):
    def forward(self, x):
        return self.proj(x)


def other(name, module, why):
    return pytest.param(module, why, id=name)


DIFFERS = "its forward computes something else (relative difference "
LEFT = (
    other("sandwich norms", lambda: Sandwich(48), DIFFERS),
    other("ids", lambda: UsesIds(48), "its forward could not be followed with marks for ids (IndexError: "),
    other("more with a mask", lambda: MoreWithMask(48), DIFFERS),
    other("any arguments", lambda: AnyArguments(48), "its forward takes any arguments (`*args`)"),
    other("three chunks", lambda: Block(48, chunks=3), "its adaLN_modulation gives 144 features, not 6 or 4 times the"),
    other("windows", lambda: Rooms(48), DIFFERS),
    other("a bias for 16 tokens", lambda: Biased(48), "its forward could not be checked (RuntimeError: "),
    other("softmax scale", lambda: Hot(48), DIFFERS),
    other("gated attention", lambda: Gated(48), DIFFERS),
    other("residual in the MLP", lambda: Residual(48, 96), DIFFERS),
    other("erf", lambda: Mlp(48, 96, nn.GELU()), "its activation is GELU(approximate='none'), the fused op computes"),
    other("SwiGLU", lambda: SwiGLU(48, 96), "a SwiGLU, which no fused op computes"),
    other("shift for scale", lambda: Twice(48, 8), DIFFERS),
    other("an image of patches", lambda: Unflat(8, 2, 4, 48), DIFFERS),
)


@pytest.mark.parametrize(("make", "why"), LEFT)
def test_each_reason(make, why):
    module = live(make())
    cls = type(module)
    report = dit_fast.patch(module)
    (got,) = [s.why for s in report.skipped if s.name == ""]
    assert got.startswith(why), got
    assert type(module) is cls


def test_parts_that_cannot_be_fused_have_reasons_too():
    final = FinalLayer(48, 8)
    final.norm_final = nn.RMSNorm(48)
    plain = Mlp(48, 96)
    plain.fc1 = nn.Linear(48, 96, bias=False)
    embed = PatchEmbed(8, 2, 4, 48)
    embed.proj = nn.Conv2d(4, 48, 4, stride=2)
    block = Block(48)
    block.forward = lambda x, c: x
    tree = nn.ModuleDict({"final": final, "mlp": plain, "embed": embed, "block": block, "vit": nn.Module()})
    for name in ("norm1", "attn", "norm2", "mlp"):
        tree["vit"].add_module(name, nn.Identity())
    reasons = {s.name: s.why for s in dit_fast.patch(tree).skipped}
    assert reasons["final"].startswith("its norm is RMSNorm((48,)")
    assert reasons["mlp"].startswith("its fc1 is Linear(in_features=48, out_features=96, bias=False)")
    assert reasons["embed"].startswith("its convolution does not cut into patches: Conv2d(4, 48, kernel_size=(4, 4)")
    assert reasons["block"] == "its forward was replaced on the instance, which a class cannot override"
    assert reasons["vit"] == "a transformer block without adaLN_modulation"


def test_a_fresh_block_is_checked_although_it_is_the_identity():
    right, wrong = Block(48), variant(order)(48)
    for block in (right, wrong):
        for p in block.adaLN_modulation.parameters():
            nn.init.zeros_(p)
        assert torch.equal(block(*inputs()), inputs()[0])
    assert "" in [r.name for r in dit_fast.patch(right).replaced]
    assert "" not in [r.name for r in dit_fast.patch(wrong).replaced]


def test_the_check_leaves_no_trace():
    class Counts(Block):
        def forward(self, x, c):
            self.seen = x
            return super().forward(x, c)

    block = live(Counts(48)).train()
    block.register_buffer("running", torch.zeros(()))
    fired = []
    for part in block.modules():
        part.register_forward_hook(lambda *_: fired.append(1))
    for p in block.parameters():
        p.register_hook(lambda g: fired.append(1))
    before, state = copy.deepcopy(block.state_dict()), torch.random.get_rng_state()
    dit_fast.patch(block)
    assert not fired and not hasattr(block, "seen") and block.training and block.attn.training
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(v, before[k]) for k, v in block.state_dict().items())


def test_one_layout_of_four_chunks_is_told_from_the_other():
    class AdaLN(Block):
        """The paper's adaLN design: no gates."""

        def forward(self, x, c):
            a, b, d, e = self.adaLN_modulation(c).chunk(4, dim=1)
            x = x + self.attn(modulate(self.norm1(x), a, b))
            return x + self.mlp(modulate(self.norm2(x), d, e))

    for unpatched in (live(AdaLN(48, chunks=4)), live(LightningBlock(48, shifts=False))):
        patched = copy.deepcopy(unpatched)
        assert "" in [r.name for r in dit_fast.patch(patched).replaced]
        assert_same(patched, unpatched, inputs())
