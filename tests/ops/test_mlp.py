# SPDX-License-Identifier: Apache-2.0
"""ops.mlp: values and gradients of linear_gelu and linear, of which less is kept; the two wherever somebody watches."""

import pytest
import torch
import torch.nn.functional as F

from dit_fast import nn as dnn
from dit_fast import ops
from dit_fast.ops._core import backends, native
from dit_fast.ops.linear_gelu import cpu_linear
from dit_fast.parity import DTYPES, compare, poisoned

from .test_linear import SIZES, Sees, gradients

hidden_gradient = None if native.MISSING else torch.ops.dit_fast_native.linear_hidden_gradient
NAMES = ("x", "weight1", "bias1", "weight2", "bias2")


def tensors(*rows, k=24, f=40, d=20, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    x, weight1, bias1, weight2, bias2 = (
        torch.randn(s, generator=generator) for s in ((*rows, k), (f, k), (f,), (d, f), (d,))
    )
    return [t.to(dtype) for t in (x, weight1 * k**-0.5, bias1, weight2 * f**-0.5, bias2)]


def plain(x, weight1, bias1, weight2, bias2=None):
    return F.linear(F.gelu(F.linear(x, weight1, bias1), approximate="tanh"), weight2, bias2)


def one_by_one(x, weight1, bias1, weight2, bias2=None):
    return ops.linear(ops.linear_gelu(x, weight1, bias1), weight2, bias2)


@pytest.fixture
def calls(monkeypatch, own):
    """Counts the backwards that find the hidden values again."""
    made, original = [], cpu_linear.hidden_gradient

    def spy(dy, weight, u):
        made.append(u.shape)
        return original(dy, weight, u)

    monkeypatch.setattr(cpu_linear, "hidden_gradient", spy)
    return made


@pytest.mark.parametrize("dtype", DTYPES)
def test_kernel_at_the_borders_of_its_tiles(isa, dtype):
    for m, d, f in SIZES:
        generator = torch.Generator().manual_seed(0)
        dy, weight, u = (torch.randn(s, generator=generator) for s in ((m, d), (d, f), (m, f)))
        given = [t.to(dtype) for t in (dy, weight * d**-0.5, u * 3)]
        with poisoned():
            du, y, dbias = hidden_gradient(*given)
        found = []
        for dy, weight, u in (given, [t.double() for t in given]):
            gradient = torch.ops.aten.gelu_backward(dy @ weight, u, approximate="tanh")
            found.append((gradient, F.gelu(u, approximate="tanh"), gradient.sum(0)))
        for name, got, eager, exact in zip(("du", "y", "dbias"), (du, y, dbias), *found, strict=True):
            assert got.shape == exact.shape and compare(got, eager, exact, dtype)[2] <= 1, (name, m, d, f)


@pytest.mark.parametrize("m,d,f", [(0, 3, 4), (3, 0, 4), (3, 4, 0)])
def test_kernel_on_nothing(isa, m, d, f):
    with poisoned():
        du, y, dbias = hidden_gradient(torch.ones(m, d), torch.ones(d, f), torch.zeros(m, f))
    assert torch.equal(du, torch.full((m, f), d / 2)) and torch.equal(dbias, torch.full((f,), m * d / 2))
    assert torch.equal(y, torch.zeros(m, f))


def test_the_number_of_threads_changes_no_bit():
    generator = torch.Generator().manual_seed(0)
    given = [torch.randn(s, generator=generator) for s in ((2100, 50), (50, 300), (2100, 300))]
    results, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2, 3, 5):
            torch.set_num_threads(threads)
            results.append(hidden_gradient(*given))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, results[0], strict=True))


def test_kernel_checks_its_arguments():
    dy, weight, u = torch.ones(3, 4), torch.ones(4, 8), torch.ones(3, 8)
    for wrong, message in [
        ((dy[0], weight, u), r"`dy` must be \(M, F\)"),
        ((dy, weight[0], u), r"`weight` must be \(F, K\)"),
        ((dy, weight[:3], u), "`weight` must have size 4"),
        ((dy, weight, u[:2]), "`u` must have size 3"),
        ((dy, weight, u.half()), "`u` has the wrong dtype"),
        ((dy[:1].expand(3, 4), weight, u), "`dy` must be contiguous"),
        ((dy.double(), weight.double(), u.double()), "float32, bfloat16 or float16"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            hidden_gradient(*wrong)
    with pytest.raises(RuntimeError, match="without `gelu`, `keep` would keep y twice"):
        torch.ops.dit_fast_native.linear(u, weight, None, False, True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [(), (5,), (2, 3, 40)])
@pytest.mark.parametrize("with_bias", [True, False])
def test_values_and_gradients(calls, dtype, rows, with_bias):
    given = tensors(*rows, dtype=dtype)[: 5 if with_bias else 4]
    dy = torch.randn(*rows, 20, generator=torch.Generator().manual_seed(1)).to(dtype)
    exact = [t.double() for t in given]
    with poisoned():
        assert torch.equal(ops.mlp(*given), one_by_one(*given))
        assert torch.equal(ops.mlp(*[t.requires_grad_() for t in given]), one_by_one(*given))
        got = gradients(ops.mlp, given, dy)
    eager, wanted = gradients(plain, given, dy), gradients(plain, exact, dy.double())
    assert calls == [(max(1, torch.Size(rows).numel()), 40)]
    for name, *three in zip(NAMES, got, eager, wanted, strict=False):
        assert three[0].shape == three[1].shape and compare(*three, dtype)[2] <= 1, name


def test_half_as_much_is_kept(calls):
    given = [t.requires_grad_() for t in tensors(6)]
    kept = {}
    for function in (ops.mlp, one_by_one):
        found = kept.setdefault(function, [])
        with torch.autograd.graph.saved_tensors_hooks(lambda t, to=found: to.append(t) or t, lambda t: t):
            function(*given)
    assert sum(t.numel() for t in kept[ops.mlp]) == sum(t.numel() for t in given[:4]) + 6 * 40
    hidden = [[t for t in kept[function] if t.shape == (6, 40)] for function in (ops.mlp, one_by_one)]
    assert [len(h) for h in hidden] == [1, 2]
    torch.testing.assert_close(hidden[0][0], F.linear(*given[:3]))


@pytest.mark.parametrize("index", range(5))
def test_only_the_gradient_that_is_wanted(calls, index, monkeypatch):
    made = []

    def spy(name, function):
        monkeypatch.setattr(cpu_linear, name, lambda *given: made.append(name) or function(*given))

    for name in ("input_gradient", "weight_gradient"):
        spy(name, getattr(cpu_linear, name))
    leaves = [t.requires_grad_(i == index) for i, t in enumerate(tensors(5))]
    ops.mlp(*leaves).sum().backward()  # dy is one number, expanded
    assert [t.grad is not None for t in leaves] == [i == index for i in range(5)]
    torch.testing.assert_close(leaves[index].grad, gradients(plain, leaves, torch.ones(5, 20))[index])
    assert made == [["input_gradient"], ["weight_gradient"], [], ["weight_gradient"], []][index]


def test_layouts_of_x_and_of_its_gradient(calls):
    given = tensors(40)
    wanted = gradients(plain, given, torch.ones(40, 20))
    given[0] = given[0].t().contiguous().t()
    for got, other in zip(gradients(ops.mlp, given, torch.ones(20, 40).t()), wanted, strict=True):
        torch.testing.assert_close(got, other)
    assert len(calls) == 1


def test_a_gradient_of_the_gradient(calls):
    found = []
    for function, dtype in ((ops.mlp, torch.float32), (plain, torch.float32), (plain, torch.float64)):
        leaves = [t.to(dtype, copy=True).requires_grad_() for t in tensors(70)]
        first = torch.autograd.grad(function(*leaves).square().sum(), leaves, create_graph=True)
        found.append(torch.autograd.grad(sum(g.square().sum() for g in first), leaves))
    for three in zip(*found, strict=True):
        assert compare(*three, torch.float32)[2] <= 1
    assert len(calls) == 1  # in the backward of which no graph was wanted


def test_who_watches_the_backward_sees_pytorchs_products(calls):
    leaves = [t.requires_grad_() for t in tensors(5)]
    y = ops.mlp(*leaves)
    with Sees() as mode:
        y.sum().backward()
    assert mode.seen.count("aten.mm.default") == 4 and "aten.gelu_backward.default" in mode.seen
    x, *others = leaves
    jacobian = torch.autograd.functional.jacobian
    ours = jacobian(lambda x: ops.mlp(x, *others), x, vectorize=True)
    torch.testing.assert_close(ours, jacobian(lambda x: plain(x, *others), x))
    assert calls == []


def test_no_change_of_what_is_kept_goes_unnoticed(calls):
    for index in (0, 1, 2, 3):
        given = [t.requires_grad_() for t in tensors(5)]
        y = ops.mlp(*given)
        with torch.no_grad():
            given[index].mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()


def test_training_under_autocast(calls):
    given = tensors(40)
    found = []
    for function in (ops.mlp, plain):
        leaves = [t.clone().requires_grad_() for t in given]
        with torch.autocast("cpu", torch.bfloat16):
            y = function(*leaves)
            assert y.dtype == torch.bfloat16
            loss = y.float().square().sum()
        found.append(torch.autograd.grad(loss, leaves))
    exact = gradients(lambda *t: plain(*t).square(), [t.bfloat16().double() for t in given], torch.ones(40, 20))
    for ours, theirs, wanted in zip(*found, exact, strict=True):
        assert ours.dtype == torch.float32 and compare(ours, theirs, wanted, torch.bfloat16)[2] <= 1
    assert len(calls) == 1


def test_whoever_watches_gets_the_two_ops(calls, monkeypatch):
    from dit_fast.ops.linear_gelu.mlp import _Own

    monkeypatch.setattr(_Own, "apply", lambda *_: pytest.fail("not the two ops"))
    given = [t.requires_grad_() for t in tensors(5)]
    x, *others = given
    wanted = plain(*given)
    with ops.use_backend("reference"):
        assert torch.equal(ops.mlp(*given), wanted)
    with Sees() as mode:
        ops.mlp(*given)
    assert "dit_fast.linear_gelu.default" in mode.seen and "aten.addmm.default" in mode.seen
    with torch.no_grad():
        torch.testing.assert_close(ops.mlp(*given), wanted)
    torch.testing.assert_close(ops.mlp(*[t.detach() for t in given]), wanted)
    compiled = torch.compile(ops.mlp, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*given), wanted)
    assert ops.mlp(*[t.double() for t in given]).dtype == torch.float64
    assert ops.mlp(x[:0], *others).shape == (0, 20)
    transposed = others[2].t().contiguous().t()
    torch.testing.assert_close(ops.mlp(x, *others[:2], transposed, others[3]), wanted)
    monkeypatch.setattr(cpu_linear, "CHOICE", {})
    torch.testing.assert_close(ops.mlp(*given), wanted)


def test_what_is_chosen_is_said_once(calls, monkeypatch, caplog):
    monkeypatch.setattr(backends, "_announced", set())
    with caplog.at_level("INFO", "dit_fast"), ops.use_backend("auto"):
        for _ in range(2):
            ops.mlp(*[t.requires_grad_() for t in tensors(5)])
    assert caplog.messages == ["linear_gelu on cpu: backend cpu"]


def test_errors(own):
    x, weight1, bias1, weight2, bias2 = (t.requires_grad_() for t in tensors(5))
    for wrong, error, message in [
        ((None, weight1, bias1, weight2, bias2), ValueError, "`x`"),
        ((x[:, :7], weight1, bias1, weight2, bias2), ValueError, "`x` must be of shape"),
        ((x, weight1, None, weight2, bias2), ValueError, "`bias`"),
        ((x, weight1, bias1[:3], weight2, bias2), ValueError, "`bias`"),
        ((x, weight1.half(), bias1, weight2, bias2), ValueError, "`weight`"),
        ((x, weight1, bias1, weight2[:, :7], bias2), RuntimeError, "shapes cannot be multiplied"),
        ((x, weight1, bias1, weight2, bias2[:3]), RuntimeError, "expanded size"),
        ((x, weight1, bias1, weight2.half(), bias2), RuntimeError, "must have the same dtype"),
    ]:
        with pytest.raises(error, match=message):
            ops.mlp(*wrong)


@pytest.fixture
def module(own):
    torch.manual_seed(0)
    return dnn.Mlp(24, 40), torch.randn(2, 5, 24)


class Adapted(torch.nn.Module):
    """What a library for adapters puts in a layer's place: the layer's parameters under their names, and more."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer
        self.weight, self.bias = layer.weight, layer.bias

    def forward(self, x):
        return self.layer(x) * 2


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("name", ["fc1", "fc2"])
def test_a_layer_that_somebody_changed_is_called(module, name, grad):
    mlp, x = module
    with torch.set_grad_enabled(grad):
        wanted, seen = mlp(x), []
        handle = mlp.get_submodule(name).register_forward_hook(lambda *_: seen.append(name))
        torch.testing.assert_close(mlp(x), wanted)
        assert seen == [name]
        handle.remove()
        setattr(mlp, name, Adapted(mlp.get_submodule(name)))
        doubled = [mlp.fc1.weight, mlp.fc1.bias, mlp.fc2.weight, mlp.fc2.bias]
        first = 0 if name == "fc1" else 2
        doubled[first : first + 2] = [2 * t for t in doubled[first : first + 2]]
        torch.testing.assert_close(mlp(x), plain(x, *doubled))


@pytest.mark.parametrize("name", ["", "fc1", "fc2"])
def test_a_graph_of_the_module_is_whole(module, name):
    mlp, x = module
    wanted = mlp(x)
    if name:
        setattr(mlp, name, Adapted(mlp.get_submodule(name)))
        wanted = mlp(x)
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(mlp, fullgraph=True, backend="aot_eager")(x), wanted)
