# SPDX-License-Identifier: Apache-2.0
"""What else a model does goes on after `patch`: hooks, optimizers, wrappers, copies, saving; `unpatch` undoes."""

import copy
import io
import logging
import pickle

import pytest
import torch
from torch import nn

import dit_fast
from dit_fast import ops
from dit_fast.integrations import selfcheck
from dit_fast.integrations.patching import ALREADY, OWN
from dit_fast.models import DiT

from . import lookalikes
from .compare import assert_same
from .lookalikes import Block, Mlp, batch, dit_like, live


def pair(**options):
    unpatched = dit_like(**options)
    patched = copy.deepcopy(unpatched)
    dit_fast.patch(patched)
    return patched, unpatched


def fused_calls(monkeypatch):
    """Names of the fused ops as they are called."""
    called = []
    for name in ("adaln", "gated_residual", "gated_residual_adaln", "attention", "linear_gelu", "patch_embed"):
        real = getattr(ops, name)

        def spy(*args, real=real, name=name, **kwargs):
            called.append(name)
            return real(*args, **kwargs)

        monkeypatch.setattr(ops, name, spy)
    return called


def test_nothing_of_the_model_changes_but_classes():
    model = dit_like()
    keys, parameters = list(model.state_dict()), {k: id(p) for k, p in model.named_parameters()}
    modules, text = {k: id(m) for k, m in model.named_modules()}, repr(model)
    values = {k: v.clone() for k, v in model.state_dict().items()}
    attributes = {k: set(vars(m)) for k, m in model.named_modules()}
    generator = torch.random.get_rng_state()
    with torch.no_grad(), torch.inference_mode():
        report = dit_fast.patch(model)
    assert len(report.replaced) == 8
    assert torch.equal(torch.random.get_rng_state(), generator)
    assert list(model.state_dict()) == keys and repr(model) == text
    assert {k: id(p) for k, p in model.named_parameters()} == parameters
    assert {k: id(m) for k, m in model.named_modules()} == modules
    assert {k: set(vars(m)) for k, m in model.named_modules()} == attributes
    assert all(torch.equal(v, values[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None and not p._backward_hooks for p in model.parameters())
    block = model.blocks[0]
    assert isinstance(block, Block) and type(block).__name__ == "Block" and type(block).__qualname__ == "Block"
    assert type(block).__module__ == lookalikes.__name__
    assert type(block) is type(model.blocks[1])  # one class a kind: a compiled graph is shared too


def test_unpatch_restores_exactly():
    model = dit_like()
    inputs, classes = batch(), {k: type(m) for k, m in model.named_modules()}
    before = model(*inputs)
    dit_fast.patch(model)
    assert not torch.equal(model(*inputs), before)  # in another order of roundings
    report = dit_fast.unpatch(model)
    assert len(report.replaced) == 8 and not report.skipped
    assert {k: type(m) for k, m in model.named_modules()} == classes
    assert torch.equal(model(*inputs), before)
    report = dit_fast.unpatch(model)
    assert not report.replaced and report.skipped[0].why == "not patched"


def test_patching_twice_says_so(caplog):
    model = dit_like()
    dit_fast.patch(model)
    classes = [type(m) for m in model.modules()]
    report = dit_fast.patch(model)
    assert not report.replaced and {s.why for s in report.skipped} == {ALREADY} and len(report.skipped) == 8
    assert [type(m) for m in model.modules()] == classes
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]
    model.blocks.append(live(Block(48)))  # one that is new is patched
    assert [r.name for r in dit_fast.patch(model).replaced] == ["blocks.2", "blocks.2.attn", "blocks.2.mlp"]


def test_our_own_model_is_fast_already(caplog):
    model = DiT(input_size=8, hidden_size=48, depth=1, num_heads=2)
    for tree, name in ((model, ""), (nn.ModuleDict({"inner": model}), "inner")):
        report = dit_fast.patch(tree)
        assert not report.replaced and [(s.name, s.why) for s in report.skipped] == [(name, OWN)]
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


def test_nothing_recognised_is_loud(caplog):
    report = dit_fast.patch(nn.Sequential(nn.Linear(4, 4)))
    assert not report.replaced and not report.skipped
    assert "nothing of Sequential was replaced: no module of it looks like" in caplog.text
    caplog.clear()
    block = Block(48)
    del block.adaLN_modulation, block.attn.qkv, block.mlp.fc1
    assert not dit_fast.patch(block).replaced
    assert "(model)  Block  left  a transformer block without adaLN_modulation" in caplog.text


def test_a_report_is_a_table():
    lines = str(dit_fast.patch(dit_like(mlp=Mlp(48, 96, nn.GELU())))).splitlines()
    assert lines == [
        "replaced 6 modules, left 1 alone",
        "x_embedder        PatchEmbed  replaced  patch_embed",
        "blocks.* x2       Block       replaced  adaln, gated_residual_adaln, gated_residual",
        "blocks.*.attn x2  Attention   replaced  attention",
        "final_layer       FinalLayer  replaced  adaln",
        "blocks.*.mlp      Mlp         left      its activation is GELU(approximate='none'), the fused op computes "
        "GELU(approximate='tanh')",
    ]


@pytest.mark.parametrize("function", (dit_fast.patch, dit_fast.unpatch))
def test_what_is_no_module_is_refused(function):
    class Pipeline:
        transformer = nn.Linear(1, 1)

    for wrong, hint in ((Pipeline(), "got Pipeline; pass its `transformer`"), (3, "got int"), (DiT, "got type")):
        with pytest.raises(ValueError, match=f"{function.__name__}: `model` must be a torch.nn.Module, {hint}"):
            function(wrong)


def test_the_optimizer_goes_on():
    patched, unpatched = pair()
    steps = []
    for model in (patched, unpatched):
        model.train()
        if model is patched:
            dit_fast.unpatch(model)
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        if model is patched:
            dit_fast.patch(model)
        model(*batch()).square().mean().backward()
        before = [p.clone() for p in model.parameters()]
        optimizer.step()
        steps.append([p - q for p, q in zip(model.parameters(), before, strict=True)])
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*steps, strict=True))
    assert sum(bool(s.any()) for s in steps[0]) == sum(p.requires_grad for p in patched.parameters())


def see(seen, name):
    def hook(module, *args):
        seen.append(name)

    return hook


HOOKS = {
    "forward": lambda m, h: m.register_forward_hook(h),
    "forward_pre": lambda m, h: m.register_forward_pre_hook(h),
    "backward": lambda m, h: m.register_full_backward_hook(h),
    "backward_pre": lambda m, h: m.register_full_backward_pre_hook(h),
}


@pytest.mark.parametrize("kind", HOOKS)
def test_hooks_see_what_they_saw(kind):
    patched, unpatched = pair(depth=1)
    seen = {}
    for model in (patched, unpatched):
        own = seen[model] = []
        for name, module in model.named_modules():
            if "drop" not in name:  # the dropout of attention is an attribute in one of its forms, a call in the other
                HOOKS[kind](module, see(own, name))
        x, t, y = batch()
        model(x.requires_grad_(), t, y).square().mean().backward()
    assert {"blocks.0.norm1", "blocks.0.mlp.act", "blocks.0.attn.q_norm", "x_embedder.proj"} <= set(seen[unpatched])
    assert seen[patched] == seen[unpatched]


def test_a_hook_on_a_part_changes_only_that_part(monkeypatch):
    patched, unpatched = pair(depth=1)
    for model in (patched, unpatched):
        model.blocks[0].norm2.register_forward_hook(lambda module, args, out: out * 2)
    called = fused_calls(monkeypatch)
    assert_same(patched, unpatched, batch())
    assert called == ["patch_embed", "adaln", "attention", "gated_residual", "linear_gelu", "gated_residual", "adaln"]


def test_hooks_on_all_modules_see_all_modules():
    patched, unpatched = pair(depth=1)
    seen = []
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(type(module).__name__))
    try:
        patched(*batch())
        of_patched = list(seen)
        seen.clear()
        unpatched(*batch())
    finally:
        handle.remove()
    assert of_patched == seen


class Lora(nn.Module):
    def __init__(self, base):
        super().__init__()
        self.base, self.a, self.b = base, nn.Linear(base.in_features, 2), nn.Linear(2, base.out_features)

    def forward(self, x):
        return self.base(x) + self.b(self.a(x))


@pytest.mark.parametrize("name", ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2", "adaLN_modulation.1"))
def test_layers_replaced_after_patching_are_used(name):
    patched, unpatched = pair(depth=1)
    for model in (patched, unpatched):
        torch.manual_seed(0)
        model.blocks[0].set_submodule(name, Lora(model.blocks[0].get_submodule(name)))
    assert_same(patched, unpatched, batch())


def test_parts_changed_after_patching_are_used():
    patched, unpatched = pair(depth=1)
    for model in (patched, unpatched):
        torch.manual_seed(0)
        block = model.blocks[0]
        nn.utils.parametrizations.weight_norm(block.mlp.fc1)
        block.norm1 = nn.LayerNorm(48)
        block.norm2.eps = 0.5
        block.attn.q_norm = nn.Tanh()
        model.final_layer.norm_final.forward = lambda x: x.sin()
    assert_same(patched, unpatched, batch())
    for model in (patched, unpatched):
        model.blocks[0].mlp.act = nn.GELU()
        model.blocks[0].attn.attn_drop.p = 0.5
        model.train()
    assert_same(patched, unpatched, batch())


@pytest.mark.parametrize("how", ("reentrant", "not reentrant"))
def test_gradient_checkpointing(how):
    patched, unpatched = pair(mlp=Mlp(48, 96, drop=0.3))
    for model in (patched, unpatched):
        model.checkpointing = how
        model.train()
    assert_same(patched, unpatched, batch())


def test_moving_and_casting_afterwards():
    model = dit_like()
    expected = model(*batch())
    dit_fast.patch(model)
    x, t, y = batch()
    exact = model.double()(x.double(), t.double(), y)
    assert exact.dtype == torch.float64 and torch.allclose(exact.float(), expected, atol=1e-4)
    assert model.bfloat16()(x.bfloat16(), t.bfloat16(), y).dtype == torch.bfloat16
    out = model.float().to("meta")(x.to("meta"), t.to("meta"), y.to("meta"))
    assert out.device.type == "meta" and out.shape == expected.shape


def test_a_model_on_meta_is_patched_and_loaded_later():
    unpatched = dit_like()
    with torch.device("meta"):
        model = lookalikes.DiTLike([Block(48) for _ in range(2)])
    assert len(dit_fast.patch(model).replaced) == 8
    model.to_empty(device="cpu").load_state_dict(unpatched.state_dict())
    assert_same(model.eval(), unpatched, batch())


def test_an_unavailable_backend_says_so():
    model = dit_like()
    with ops.use_backend("cuda"):
        assert dit_fast.patch(model).replaced  # the check runs on the reference
        with pytest.raises(ops.BackendUnavailable, match="tensors are on cpu"):
            model(*batch())


def test_copies_and_pickles_stay_patched():
    patched, unpatched = pair()
    inputs = batch()
    expected = patched(*inputs)
    file = io.BytesIO()
    torch.save(patched, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    for other in (copy.deepcopy(patched), loaded, pickle.loads(pickle.dumps(patched))):
        assert [type(m) for m in other.modules()] == [type(m) for m in patched.modules()]
        assert torch.equal(other(*inputs), expected)
        assert len(dit_fast.unpatch(other).replaced) == 8
        assert torch.equal(other(*inputs), unpatched(*inputs))
    shallow = copy.copy(patched.blocks[0])
    assert type(shallow) is type(patched.blocks[0]) and shallow.norm1 is patched.blocks[0].norm1


def test_function_transforms_and_forward_mode_go_through_the_modules():
    patched, unpatched = pair(depth=1, fused_attn=False)  # PyTorch's fused attention has no forward mode
    x, t, y = batch()

    def transformed(model):
        yield torch.func.jvp(lambda x: model(x, t, y), (x,), (x,))[1]
        yield torch.func.grad(lambda x: model(x, t, y).sum())(x)
        yield torch.vmap(lambda x: model(x[None], t[:1], y[:1]))(x)
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(x, x)
            yield torch.autograd.forward_ad.unpack_dual(model(dual, t, y)).tangent

    for got, expected in zip(list(transformed(patched)), list(transformed(unpatched)), strict=True):
        assert expected.any() and torch.allclose(got, expected, atol=1e-5)


def test_like_modules_are_checked_once(monkeypatch):
    checked = []
    real = selfcheck._why_differs
    monkeypatch.setattr(selfcheck, "_why_differs", lambda module, *rest: (checked.append(1), real(module, *rest))[1])
    assert len(dit_fast.patch(dit_like(depth=3)).replaced) == 11
    assert len(checked) == 5
    checked.clear()
    model = dit_like(depth=3)
    model.blocks[1].norm2.eps = 1e-3  # another kind
    dit_fast.patch(model)
    assert len(checked) == 6
