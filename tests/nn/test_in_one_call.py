# SPDX-License-Identifier: Apache-2.0
"""Branches of a block in one call: the bits of the ops they are made of, and the modules wherever somebody watches."""

import contextlib

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dit_fast import nn as dnn
from dit_fast.models import CONDITIONING
from dit_fast.ops import branches as calls
from dit_fast.ops import use_backend
from dit_fast.ops._core import backends, native
from dit_fast.parity import DTYPES, poisoned

from ..models.live import batch, live_model

pytestmark = pytest.mark.skipif(native.MISSING is not None, reason=str(native.MISSING))


@pytest.fixture
def made(monkeypatch):
    """The calls made: a letter for each branch, "a" with an attention, "m" an MLP."""
    found, original = [], calls.branches

    def spy(x, h, given):
        result = original(x, h, given)
        if result is not None:
            found.append("".join("a" if branch.num_heads else "m" for branch in given))
        return result

    monkeypatch.setattr(calls, "branches", spy)
    return found


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("design", CONDITIONING)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_bits_are_those_of_the_ops(isa, own, made, monkeypatch, design, dtype, mode):
    model = live_model(conditioning=design, hidden_size=144, depth=2).to(dtype)
    x, t, y = batch(model, 3, 8, 6)
    results = []
    with use_backend("cpu"), mode(), poisoned():
        for built in (True, False):
            monkeypatch.setattr(calls, "_BUILT", built)
            results.append(model(x.to(dtype), t, y))
    assert torch.equal(*results)
    assert made == (["a", "m"] * 2 if design == "cross_attention" else ["amam"])
    assert not results[0]._is_view() and results[0].is_inference() == (mode is torch.inference_mode)


def block_and_inputs(dtype=torch.float32):
    torch.manual_seed(0)
    block = dnn.AdaLNZeroBlock(128, 2).to(dtype).eval()
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    x, h = torch.randn(2, 2, 80, 128).to(dtype)
    rows = torch.randn(2, 128).to(dtype)
    return block, x, h, block.modulation(rows), dnn.Modulation(rows, rows, rows)


@pytest.fixture
def block(own):
    """Called as it is, it makes two calls; the bits that it gives."""
    block, *given = block_and_inputs()
    with use_backend("cpu"), torch.no_grad():
        yield block, given, block(*given)


def same(got, wanted):
    return all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))


class Other(dnn.Linear):
    pass


class Sees(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


def hooked(module):
    return module.register_forward_hook(lambda *_: None)


ATTENTION_WATCHED = {
    "a hook": lambda block: hooked(block.attn),
    "a hook on a part": lambda block: hooked(block.attn.qkv),
    "a hook before": lambda block: block.attn.proj.register_forward_pre_hook(lambda *_: None),
    "a hook behind": lambda block: block.attn.register_full_backward_hook(lambda *_: None),
    "another class": lambda block: setattr(block.attn.proj, "__class__", Other),
    "another class of the branch": lambda block: setattr(block.attn, "__class__", type("Mine", (dnn.Attention,), {})),
    "a forward of its own": lambda block: setattr(block.attn.qkv, "forward", block.attn.qkv.forward),
    "compiled": lambda block: block.attn.compile(backend="eager"),
    "a parametrization": lambda block: torch.nn.utils.parametrizations.orthogonal(block.attn.proj),
    "a weight kept elsewhere": lambda block: block.attn.qkv.__dict__.update(
        weight=block.attn.qkv._parameters.pop("weight")
    ),
}


@pytest.mark.parametrize("change", ATTENTION_WATCHED)
def test_a_branch_that_somebody_changed_is_called(block, made, change):
    block, given, wanted = block
    assert same(block(*given), wanted) and made == ["a", "m"]
    ATTENTION_WATCHED[change](block)
    got = block(*given)
    assert made == ["a", "m", "m"]
    assert same(got, wanted) or change == "a parametrization"


def test_so_is_an_mlp(block, made):
    block, given, wanted = block
    calls_of_fc2 = []
    handle = block.mlp.fc2.register_forward_hook(lambda *_: calls_of_fc2.append(1))
    assert same(block(*given), wanted) and made == ["a"] and calls_of_fc2 == [1]
    handle.remove()
    assert same(block(*given), wanted) and made == ["a", "a", "m"]


def test_normalised_heads_have_no_call(own, made):
    block, *given = block_and_inputs()
    block.attn = dnn.Attention(128, 2, "rms")
    with use_backend("cpu"), torch.no_grad():
        block(*given)
    assert made == ["m"]


@contextlib.contextmanager
def global_hook():
    handle = torch.nn.modules.module.register_module_forward_hook(lambda *_: None)
    yield
    handle.remove()


WATCHED = {
    "gradients": torch.enable_grad,
    "a mode": Sees,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "a hook on everything": global_hook,
    "another backend": lambda: use_backend("reference"),
    "another linear": lambda: use_backend(linear_gelu="reference"),
    "another norm": lambda: use_backend(gated_residual_adaln="reference"),
}


@pytest.mark.parametrize("change", WATCHED)
def test_whoever_watches_sees_the_ops(block, made, change):
    block, given, wanted = block
    with WATCHED[change]():
        got = block(*given)
    assert not made
    assert got[0].requires_grad == (change == "gradients")
    if change != "autocast":
        torch.testing.assert_close(tuple(tensor.detach() for tensor in got), wanted)


def test_attention_goes_where_it_is_fastest(block, made, monkeypatch):
    block, given, _ = block
    with use_backend(attention="sdpa"):
        block(*given)
    assert made == ["m"]
    for first, expected in (("sdpa", ["m"]), ("cpu", ["a", "m"])):
        made.clear()
        monkeypatch.setattr(calls, "order", lambda *_, first=first: (first, "reference"))
        with use_backend("auto"):
            block(*given)
        assert made == expected


def test_what_does_not_fit_is_left_to_the_ops(block, made):
    block, (x, h, modulation, after), wanted = block
    across = [tensor.transpose(0, 1).contiguous().transpose(0, 1) for tensor in (x, h)]
    for given in ((across[0], h), (x, across[1])):
        assert same(block(*given, modulation, after), wanted) and made == ["m"]
        made.clear()
    for index, wrong in ((0, x[:1]), (0, x.double()), (0, x.to("meta")), (1, h[..., :7])):
        given = [x, h, modulation, after]
        given[index] = wrong
        with pytest.raises((ValueError, RuntimeError, TypeError)):
            block(*given)
        assert not made
    gate = modulation[0].gate
    for wrong in (gate[:1], gate.double(), gate.to("meta")):
        with pytest.raises(ValueError, match="gated_residual_adaln: `gate` must be"):
            block(x, h, [modulation[0]._replace(gate=wrong), modulation[1]], after)


def test_the_choice_of_each_op_is_logged(block, made, monkeypatch):
    block, given, _ = block
    monkeypatch.setattr(backends, "_announced", set())
    monkeypatch.setattr(calls, "order", lambda *_: ("cpu",))
    with use_backend("auto"):
        block(*given)
    assert made == ["a", "m"]
    assert {op for op, *_ in backends._announced} == {"attention", "linear_gelu", "gated_residual_adaln"}


def test_a_compiled_block_holds_the_ops(block):
    block, given, wanted = block
    torch._dynamo.reset()
    got = torch.compile(block, backend="aot_eager", fullgraph=True)(*given)
    torch.testing.assert_close(got, wanted)


def test_blocks_that_somebody_changed_are_called(own, made):
    model = live_model(hidden_size=144, depth=2)
    given = batch(model, 3, 8, 6)

    class Mine(dnn.AdaLNZeroBlock):
        def branches(self, context):
            return [self.attn, lambda h: self.mlp(h) * 2]

    with use_backend("cpu"), torch.no_grad():
        wanted = model(*given)
        hooked(model.blocks[0])
        assert torch.equal(model(*given), wanted) and made == ["amam", "a", "m", "a", "m"]
        model.blocks[0]._forward_hooks.clear()
        made.clear()
        model.blocks[1].__class__ = Mine
        assert not torch.allclose(model(*given), wanted) and made == ["a", "m", "a"]
        made.clear()
        model.blocks[1] = torch.compile(model.blocks[0], backend="eager")
        model(*given)
        assert made == ["a", "m"]


def test_a_model_without_blocks(own):
    model = live_model(depth=0)
    with torch.no_grad():
        assert model(*batch(model)).isfinite().all()


def test_the_native_call_checks_its_arguments():
    block, x, h, (own, _), _ = block_and_inputs()
    attn, native_call = block.attn, torch.ops.dit_fast_native.branches
    layers, rows = [attn.qkv.weight, attn.qkv.bias, attn.proj.weight, attn.proj.bias], [own.gate, own.shift, own.scale]
    swapped = [layers[2], layers[3], layers[0], layers[1]]
    for given, message in [
        ((x[0], h, layers, rows, [2], [1e-6]), r"`x` must be \(N, T, D\)"),
        ((x, h[0], layers, rows, [2], [1e-6]), "`h` must have 3 dimensions"),
        ((x[:1], h, layers, rows, [2], [1e-6]), "`h` must have size 1"),
        ((x, h.transpose(1, 2).contiguous().transpose(1, 2), layers, rows, [2], [1e-6]), "`h` must be contiguous"),
        ((x, h.half(), layers, rows, [2], [1e-6]), "`h` has the wrong dtype"),
        ((x.double(), h, layers, rows, [2], [1e-6]), "float32, bfloat16 or float16"),
        ((x, h, swapped, rows, [2], [1e-6]), "`first weight` must have size 384"),
        ((x, h, [layers[1], *layers[1:]], rows, [2], [1e-6]), "weights must have 2 dimensions"),
        ((x, h, [layers[0], layers[3], *layers[2:]], rows, [2], [1e-6]), "`first bias` must have size 384"),
        ((x, h, [*layers[:2], *layers[:2]], rows, [2], [1e-6]), "`second weight` must have size 128"),
        ((x, h, [*layers[:3], layers[1]], rows, [2], [1e-6]), "`second bias` must have size 128"),
        ((x, h, layers, rows, [3], [1e-6]), "`heads` must divide D = 128, got 3"),
        ((x, h, layers, rows, [-1], [1e-6]), "`heads` must divide D = 128, got -1"),
        ((x, h, layers, [own.gate[:1], *rows[1:]], [2], [1e-6]), "`gate, shift or scale` must have size 2"),
        ((x, h, layers, rows, [2, 2], [1e-6]), "2 branches need 4 `layers`, 3 `rows` and 1 `eps` each, got 4, 3, 1"),
        ((x, h, layers, rows, [0], [1e-6]), "`second weight` must have size 384"),
    ]:
        with pytest.raises(RuntimeError, match=message), torch.no_grad():
            native_call(*given)
