# SPDX-License-Identifier: Apache-2.0
"""ops.linear and the CPU kernels under it: right at every border of their tiles, on every instruction set; PyTorch's
own function wherever something else has to see it."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from dit_fast import nn as dnn
from dit_fast import ops
from dit_fast.ops._core import native
from dit_fast.ops.linear_gelu import cpu_linear, packed
from dit_fast.ops.linear_gelu.linear import why_not
from dit_fast.parity import DTYPES, compare, poisoned

kernel = None if native.MISSING else torch.ops.dit_fast_native.linear


def tensors(m, k, f, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x, weight, bias = (torch.randn(s, generator=generator) for s in ((m, k), (f, k), (f,)))
    return x.to(dtype), (weight * k**-0.5).to(dtype), bias.to(dtype)


SIZES = [
    (1, 1, 1), (2, 7, 15), (3, 8, 2), (4, 24, 33), (5, 9, 16), (32, 40, 31), (33, 40, 31), (34, 1, 17), (38, 383, 16),
    (143, 24, 33), (144, 16, 130), (145, 384, 32), (198, 385, 40), (389, 800, 150), (36, 2000, 48), (1535, 16, 17),
    (1611, 24, 130),
]  # fmt: skip
"""M, K, F at and beside borders: of tiles, chunks, spans, parts of K, groups of panels; M to 32 is another kernel."""


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("with_bias", [True, False])
def test_kernel_at_the_borders_of_its_tiles(isa, dtype, with_bias):
    for m, k, f in SIZES:
        x, weight, bias = tensors(m, k, f, dtype)
        bias = bias if with_bias else None
        eager = F.linear(x, weight, bias)
        exact = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
        with poisoned():
            plain, none = kernel(x, weight, bias, False, False)
            activated, kept = kernel(x, weight, bias, True, True)
            alone, _ = kernel(x, weight, bias, True, False)
        assert none.shape == (0, f)
        assert torch.equal(kept, plain) and torch.equal(alone, activated), (m, k, f)
        assert compare(plain, eager, exact, dtype)[2] <= 1, (m, k, f)
        gelus = F.gelu(eager, approximate="tanh"), F.gelu(exact, approximate="tanh")
        assert compare(activated, *gelus, dtype)[2] <= 1, (m, k, f)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradient_of_the_input_at_the_borders_of_its_tiles(isa, dtype):
    for m, f, k in SIZES:
        dy, weight, _ = tensors(m, f, k, dtype)
        weight = weight.t().contiguous()
        with poisoned():
            dx = torch.ops.dit_fast_native.linear_input_gradient(dy, weight)
        assert compare(dx, dy @ weight, dy.double() @ weight.double(), dtype)[2] <= 1, (m, k, f)


@pytest.mark.parametrize("m,f,k", [(0, 3, 4), (3, 0, 4), (3, 4, 0)])
def test_gradient_of_the_input_of_nothing(isa, m, f, k):
    with poisoned():
        dx = torch.ops.dit_fast_native.linear_input_gradient(torch.ones(m, f), torch.ones(f, k))
    assert torch.equal(dx, torch.full((m, k), float(f)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (63, 9), (64, 16), (65, 33), (200, 5), (0, 7)])
def test_gradient_of_the_gelu(isa, dtype, shape):
    generator = torch.Generator().manual_seed(0)
    u, dy = ((torch.randn(shape, generator=generator) * 3).to(dtype) for _ in range(2))
    exact = torch.ops.aten.gelu_backward(dy.double(), u.double(), approximate="tanh")
    eager = torch.ops.aten.gelu_backward(dy, u, approximate="tanh")
    with poisoned():
        du, dbias = torch.ops.dit_fast_native.gelu_backward(dy, u)
    assert compare(du, eager, exact, dtype)[2] <= 1
    assert compare(dbias, eager.sum(0), exact.sum(0), dtype)[2] <= 1


@pytest.mark.parametrize("m", [5, 70])
def test_rows_that_are_not_numbers_stay_in_their_rows(m):
    x, weight, bias = tensors(m, 24, 40)
    x[1, 3], x[2, 5], x[3, 7] = float("nan"), float("inf"), -1e30
    y, u = kernel(x, weight, bias, True, True)
    assert torch.equal(u.isnan(), F.linear(x, weight, bias).isnan()) and y[1].isnan().all()
    assert not y[[0, 3, 4]].isnan().any()
    torch.testing.assert_close(kernel(x, weight, bias, True, False)[0], y, rtol=0, atol=0, equal_nan=True)
    finite = u.isfinite()
    torch.testing.assert_close(y[finite], F.gelu(u[finite], approximate="tanh"))
    assert y[2][u[2] > 0].isinf().all() and not y[2][u[2] < 0].isinf().any()


@pytest.mark.parametrize("m,k,f", [(8, 100, 300), (389, 500, 300)])
def test_the_number_of_threads_changes_no_bit(m, k, f):
    given, results, before = tensors(m, k, f), [], torch.get_num_threads()
    u, dy = (torch.randn(m, f, generator=torch.Generator().manual_seed(i)) for i in range(2))
    native_ops = torch.ops.dit_fast_native
    try:
        for threads in (1, 2, 3, 5):
            torch.set_num_threads(threads)
            dx = native_ops.linear_input_gradient(dy, given[1])
            results.append([*kernel(*given, True, True), *native_ops.gelu_backward(dy, u), dx])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, results[0], strict=True))


def test_kernel_checks_its_arguments():
    x, weight, bias = tensors(3, 8, 4)
    for wrong, message in [
        ((x[0, 0], weight, bias), r"`x` must be \(\.\.\., K\) and contiguous"),
        ((x, weight[0], bias), r"`weight` must be \(F, K\)"),
        ((x, weight[:, :7], bias), "`weight` must have size 8"),
        ((x, weight.half(), bias), "`weight` has the wrong dtype"),
        ((x, weight, bias[:3]), "`bias` must have size 4"),
        ((x.t().contiguous().t(), weight, bias), r"`x` must be \(\.\.\., K\) and contiguous"),
        ((x.double(), weight.double(), None), "float32, bfloat16 or float16"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            kernel(*wrong, False, False)
    dy = torch.ones(3, 4)
    for wrong, message in [
        ((dy[0], weight), r"`dy` must be \(M, F\)"),
        ((dy, weight[0]), r"`weight` must be \(F, K\)"),
        ((dy, weight[:3]), "`weight` must have size 4"),
        ((dy, weight.half()), "`weight` has the wrong dtype"),
        ((dy[:1].expand(3, 4), weight), "`dy` must be contiguous"),
        ((dy.double(), weight.double()), "float32, bfloat16 or float16"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            torch.ops.dit_fast_native.linear_input_gradient(*wrong)


class Sees(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.seen.append(str(function))
        return function(*args, **(kwargs or {}))


@pytest.fixture
def calls(monkeypatch, own):
    """Counts the products of ours."""
    made, original = [], cpu_linear.own

    def spy(x, weight, bias):
        made.append(x.shape)
        return original(x, weight, bias)

    monkeypatch.setattr(cpu_linear, "own", spy)
    return made


@pytest.mark.parametrize("shape", [(24,), (5, 24), (2, 3, 4, 24)])
@pytest.mark.parametrize("with_bias", [True, False])
def test_inference_takes_the_kernel_in_any_shape_and_layout(calls, shape, with_bias):
    _, weight, bias = tensors(1, 24, 10)
    bias = bias if with_bias else None
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(1))
    layouts = [x] if len(shape) == 1 else [x, x.transpose(0, -2).contiguous().transpose(0, -2)]
    for given in layouts:
        y = ops.linear(given, weight, bias)
        assert y.shape == (*shape[:-1], 10)
        torch.testing.assert_close(y, F.linear(x, weight, bias))
    assert len(calls) == len(layouts)


def test_whatever_else_wants_to_see_linear_gets_pytorchs(calls):
    x, weight, bias = tensors(5, 24, 10)
    wanted = F.linear(x, weight, bias)
    with ops.use_backend("reference"):
        assert torch.equal(ops.linear(x, weight, bias), wanted)
    with ops.use_backend(linear_gelu="triton"):
        assert torch.equal(ops.linear(x, weight, bias), wanted)
    with Sees() as mode:
        ops.linear(x, weight, bias)
    assert "aten.addmm.default" in mode.seen
    torch.testing.assert_close(torch.vmap(ops.linear, (0, None, None))(x, weight, bias), wanted)
    tangent = torch.func.jvp(lambda t: ops.linear(t, weight, bias), (x,), (x,))[1]
    torch.testing.assert_close(tangent, F.linear(x, weight))
    torch.testing.assert_close(torch.func.grad(lambda t: ops.linear(t, weight, bias).sum())(x)[0], weight.sum(0))
    traced = torch.jit.trace(lambda t: ops.linear(t, weight, bias), x, check_trace=False)
    assert traced.graph.findNode("aten::linear") is not None
    compiled = torch.compile(ops.linear, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, weight, bias), wanted)
    assert ops.linear(x.to("meta"), weight.to("meta"), bias.to("meta")).shape == (5, 10)
    assert ops.linear(x.double(), weight.double(), bias.double()).dtype == torch.float64
    torch.testing.assert_close(ops.linear(x, tensors(1, 10, 24)[1].t(), bias).shape, wanted.shape)
    assert ops.linear(x[:0], weight, bias).shape == (0, 10)

    class Mine(torch.Tensor):
        pass

    assert type(ops.linear(x, weight.as_subclass(Mine), bias)) is Mine
    assert calls == []


@pytest.mark.parametrize("wrong", [
    lambda x, w, b: (x[:, :7], w, b), lambda x, w, b: (x, w, b[:3]), lambda x, w, b: (x.half(), w, b),
    lambda x, w, b: (x, w, b.half()),
])  # fmt: skip
def test_errors_are_pytorchs(own, wrong):
    arguments = wrong(*tensors(5, 24, 10))
    with pytest.raises(RuntimeError) as theirs:
        F.linear(*arguments)
    with pytest.raises(RuntimeError) as ours:
        ops.linear(*arguments)
    assert str(ours.value) == str(theirs.value)


def test_autocast_casts_as_pytorch_does(calls):
    x, weight, bias = tensors(40, 24, 10)
    with torch.autocast("cpu", torch.bfloat16):
        got = ops.linear(x, weight, bias)
    assert calls and got.dtype == torch.bfloat16
    exact = F.linear(*(t.bfloat16().double() for t in (x, weight, bias)))
    assert compare(got, F.linear(*(t.bfloat16() for t in (x, weight, bias))), exact, torch.bfloat16)[2] <= 1


def test_inference_mode(calls):
    x, weight, bias = tensors(40, 24, 10)
    with torch.inference_mode():
        torch.testing.assert_close(ops.linear(x, weight.clone(), bias), F.linear(x, weight, bias))
    assert calls


def test_the_module_is_pytorchs_with_another_forward(calls):
    torch.manual_seed(0)
    ours, theirs = dnn.Linear(24, 10), torch.nn.Linear(24, 10)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(40, 24)
    with torch.no_grad():
        for module in (ours, copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
            torch.testing.assert_close(module(x), theirs(x))
    assert len(calls) == 3
    ours(x).square().sum().backward()
    theirs(x).square().sum().backward()
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad)
    assert len(calls) == 4


def gradients(function, tensors, backward):
    leaves = [t.detach().clone().requires_grad_() for t in tensors]
    return torch.autograd.grad(function(*leaves), leaves, backward)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(24,), (5, 24), (2, 3, 40, 24)])
@pytest.mark.parametrize("with_bias", [True, False])
def test_gradients(calls, dtype, shape, with_bias):
    _, weight, bias = tensors(1, 24, 10, dtype)
    generator = torch.Generator().manual_seed(1)
    x, dy = (torch.randn(*shape[:-1], n, generator=generator).to(dtype) for n in (24, 10))
    given = (x, weight, bias) if with_bias else (x, weight)
    with poisoned():
        got = gradients(ops.linear, given, dy)
    eager = gradients(F.linear, given, dy)
    exact = gradients(F.linear, [t.double() for t in given], dy.double())
    assert calls == [shape]
    for name, *three in zip(("x", "weight", "bias"), got, eager, exact, strict=False):
        assert three[0].shape == three[1].shape and compare(*three, dtype)[2] <= 1, name


@pytest.mark.parametrize("index", range(3))
def test_only_the_gradient_that_is_wanted(calls, index, monkeypatch):
    made = []

    def spy(name, function):
        monkeypatch.setattr(cpu_linear, name, lambda *given: made.append(name) or function(*given))

    for name in ("input_gradient", "weight_gradient"):
        spy(name, getattr(cpu_linear, name))
    leaves = [t.requires_grad_(i == index) for i, t in enumerate(tensors(5, 24, 10))]
    ops.linear(*leaves).sum().backward()  # dy is one number, expanded
    assert [t.grad is not None for t in leaves] == [i == index for i in range(3)]
    torch.testing.assert_close(leaves[index].grad, gradients(F.linear, leaves, torch.ones(5, 10))[index])
    assert made == [["input_gradient"], ["weight_gradient"], []][index] and len(calls) == 1


def test_layouts_of_x_and_of_its_gradient(calls):
    x, weight, bias = tensors(40, 24, 10)
    wanted = gradients(F.linear, (x, weight, bias), torch.ones(40, 10))
    x = x.t().contiguous().t()
    dy = torch.ones(10, 40).t()
    for got, other in zip(gradients(ops.linear, (x, weight, bias), dy), wanted, strict=True):
        torch.testing.assert_close(got, other)


def test_a_gradient_of_the_gradient(calls):
    given = tensors(70, 24, 40)
    found = []
    for function, dtype in ((ops.linear, torch.float32), (F.linear, torch.float32), (F.linear, torch.float64)):
        leaves = [t.to(dtype, copy=True).requires_grad_() for t in given]
        first = torch.autograd.grad(function(*leaves).square().sum(), leaves, create_graph=True)
        found.append(torch.autograd.grad(sum(g.square().sum() for g in first), leaves))
    for three in zip(*found, strict=True):
        assert compare(*three, torch.float32)[2] <= 1
    assert len(calls) == 1


def test_who_watches_the_backward_sees_pytorchs_products(calls):
    leaves = [t.requires_grad_() for t in tensors(5, 24, 10)]
    y = ops.linear(*leaves)
    with Sees() as mode:
        y.sum().backward()
    assert mode.seen.count("aten.mm.default") == 2
    x, *others = leaves
    jacobian = torch.autograd.functional.jacobian
    ours = jacobian(lambda x: ops.linear(x, *others), x, vectorize=True)
    torch.testing.assert_close(ours, jacobian(lambda x: F.linear(x, *others), x))


def test_nothing_is_kept_twice_and_no_change_goes_unnoticed(calls):
    x, weight, bias = (t.requires_grad_() for t in tensors(5, 24, 10))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.data_ptr()) or t, lambda t: t):
        y = ops.linear(x, weight, bias)
    assert sorted(kept) == sorted([x.data_ptr(), weight.data_ptr()])
    with torch.no_grad():
        weight.mul_(2)
    y = ops.linear(x, weight, bias)
    with torch.no_grad():
        weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
    assert len(calls) == 2


def test_training_under_autocast(calls):
    given = tensors(40, 24, 10)
    found = []
    for function in (ops.linear, F.linear):
        leaves = [t.clone().requires_grad_() for t in given]
        with torch.autocast("cpu", torch.bfloat16):
            loss = function(*leaves).float().square().sum()
        found.append(torch.autograd.grad(loss, leaves))
    exact = gradients(lambda *t: F.linear(*t).square(), [t.bfloat16().double() for t in given], torch.ones(40, 10))
    for ours, theirs, wanted in zip(*found, exact, strict=True):
        assert ours.dtype == torch.float32 and compare(ours, theirs, wanted, torch.bfloat16)[2] <= 1
    assert len(calls) == 1


def test_where_onednn_multiplies_gradients_are_pytorchs(monkeypatch):
    monkeypatch.setattr(cpu_linear, "CHOICE", {native.instruction_set(): "onednn"})
    given = tensors(5, 24, 10)
    for index in range(3):
        leaves = [t.clone().requires_grad_(i == index) for i, t in enumerate(given)]
        assert "gradient" in why_not(*leaves)
        assert ops.linear(*leaves).grad_fn.name() == "AddmmBackward0"


def test_a_cpu_nothing_was_measured_on_keeps_pytorchs_and_says_so(monkeypatch, caplog):
    from dit_fast.ops._core import backends

    monkeypatch.setattr(cpu_linear, "CHOICE", {})
    monkeypatch.setattr(backends, "_announced", set())
    x, weight, bias = tensors(5, 24, 10)
    with caplog.at_level("INFO", "dit_fast"):
        for _ in range(2):
            assert torch.equal(ops.linear(x, weight, bias), F.linear(x, weight, bias))
    assert len(caplog.messages) == 1
    assert "linear on cpu: backend PyTorch; not onednn is not known to be faster on a CPU with" in caplog.messages[0]
    monkeypatch.setattr(cpu_linear, "CHOICE", {native.instruction_set(): "onednn"})
    monkeypatch.setattr(packed, "missing", lambda dtype: "PyTorch lost it")
    assert "PyTorch lost it" in cpu_linear.why_not("onednn", x, weight)
    assert torch.equal(ops.linear(x, weight, bias), F.linear(x, weight, bias))
