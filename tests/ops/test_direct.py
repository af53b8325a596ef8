# SPDX-License-Identifier: Apache-2.0
"""Ops called without their operators where nobody would notice: the same bits, and the operator where somebody does."""

import contextlib

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from dit_fast import ops
from dit_fast.ops import specs, use_backend
from dit_fast.ops._core import OPS, why_not_direct
from dit_fast.ops._core import op as op_module
from dit_fast.ops.adamw_ema.spec import WRITTEN

SPECS = specs()
CASES = [(name, case, "cpu") for name, spec in SPECS.items() for case in spec.cases]
CASES += [(name, spec.cases[1], "triton") for name, spec in SPECS.items()]  # slow, and the same code above the kernel
X = torch.randn(2, 3, 64, generator=torch.Generator().manual_seed(0))
ROWS = X[:, 0]


@pytest.fixture
def called(monkeypatch):
    """The operators of ours that were called."""
    names = []
    for name, op in OPS.items():
        monkeypatch.setattr(op, "forward", lambda *a, name=name, true=op.forward: (names.append(name), true(*a))[1])
    return names


def residual(x=X):
    return ops.gated_residual(x, x, ROWS)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("name,case,backend", CASES, ids=lambda part: getattr(part, "name", part))
def test_the_bits_are_the_operators(called, monkeypatch, name, case, backend, mode):
    spec, results = SPECS[name], []
    for forced in (False, True):
        if forced:
            monkeypatch.setattr(op_module, "why_not_direct", lambda arguments: "the test wants it")
        with mode(), use_backend(backend):
            out = spec.function(**spec.make(case, torch.bfloat16))
        results.append(out if isinstance(out, tuple) else (out,))
        assert called == [name] * forced
    for direct, through in zip(*results, strict=True):
        assert torch.equal(direct, through)
        assert direct.stride() == through.stride() and direct.is_inference() == through.is_inference()
        assert not direct._is_view() and not direct.requires_grad


@pytest.mark.parametrize("backend", ["cpu", "triton"])
def test_what_is_written_in_place_tells_so_as_often(called, monkeypatch, backend):
    spec = SPECS["adamw_ema"]
    case = next(case for case in spec.cases if case.layout == "strided")  # written to a copy, and back
    counts = []
    for forced in (False, True):
        if forced:
            monkeypatch.setattr(op_module, "why_not_direct", lambda arguments: "the test wants it")
        given = spec.make(case, torch.bfloat16)
        before = {name: [tensor._version for tensor in given[name]] for name in WRITTEN}
        with use_backend(backend):
            ops.adamw_ema(**given)
        counts.append({name: [t._version for t in given[name]] for name in WRITTEN})
        assert all(new > old for name in WRITTEN for new, old in zip(counts[-1][name], before[name], strict=True))
    assert counts[0] == counts[1] and called == ["adamw_ema"]


class Mine(torch.Tensor):
    pass


class SeesFunctions(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


class SeesOperators(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


def with_a_gradient():
    assert residual(X.clone().requires_grad_()).requires_grad


def with_another_sign():
    with use_backend("triton"):
        assert torch.equal(residual(X._neg_view()), -residual())


def under_vjp_of_something_else():
    torch.func.vjp(lambda t: t + residual(), X)


def under_vmap():
    assert torch.equal(torch.vmap(residual)(torch.stack([X, X]))[1], residual())


def at_a_forward_mode_level():
    with forward_ad.dual_level():
        residual()


def within(mode):
    def inner():
        with mode() as entered:
            residual()
        return entered

    return inner


def in_a_trace():
    traced = torch.jit.trace(residual, X, check_trace=False)
    assert traced.graph.findNode("dit_fast::gated_residual") is not None


def in_a_graph(pre_dispatch):
    def inner():
        graph = make_fx(lambda x: residual(x), pre_dispatch=pre_dispatch)(X).graph
        assert any("dit_fast.gated_residual" in str(node.target) for node in graph.nodes)

    return inner


def in_a_list():
    spec = SPECS["adamw_ema"]
    given = spec.make(spec.cases[1], torch.float32)
    ops.adamw_ema(**{**given, "emas": [tensor.as_subclass(Mine) for tensor in given["emas"]]})


SEEN = {
    "a gradient is wanted": with_a_gradient,
    "negated": with_another_sign,
    "a subclass": lambda: residual(X.as_subclass(Mine)),
    "a subclass in a list": in_a_list,
    "under a transform": under_vjp_of_something_else,
    "under vmap": under_vmap,
    "a forward-mode level": at_a_forward_mode_level,
    "a dispatch mode": within(SeesOperators),
    "fake tensors": within(lambda: FakeTensorMode(allow_non_fake_inputs=True)),
    "a function mode": within(SeesFunctions),
    "jit": in_a_trace,
    "make_fx": in_a_graph(False),
    "make_fx, early": in_a_graph(True),
}


@pytest.mark.parametrize("watcher", SEEN)
def test_whoever_watches_sees_the_operator(called, watcher):
    with use_backend("cpu"):
        residual()
        assert called == []
        with contextlib.suppress(NotImplementedError):  # what the operator says to some
            SEEN[watcher]()
    assert called


def test_flops_are_counted_without_a_gradient():
    spec = SPECS["linear_gelu"]
    given = spec.make(spec.cases[1], torch.float32)
    m, (f, k) = given["x"][..., 0].numel(), given["weight"].shape
    with torch.no_grad(), use_backend("cpu"), FlopCounterMode(display=False) as counter:
        ops.linear_gelu(**given)
    assert counter.get_total_flops() == 2 * m * k * f


def test_a_compiled_graph_holds_the_operator():
    graphs = []
    compiled = torch.compile(residual, fullgraph=True, backend=lambda graph, _: graphs.append(graph) or graph.forward)
    with torch.no_grad(), use_backend("cpu"):
        assert torch.equal(compiled(X), residual())
    assert "dit_fast.gated_residual.default" in graphs[0].code


@pytest.mark.parametrize("tensor,reason", [
    (X.to_sparse(), "memory"), (X._neg_view(), "memory"), (X.to_mkldnn(), "memory"), (X, None), (None, None),
    (torch.nn.Parameter(ROWS, requires_grad=False), None), ([X, X.as_subclass(Mine)], "class"),
])  # fmt: skip
def test_reasons(tensor, reason):
    found = why_not_direct((X, tensor, 1.0, "cpu"))
    assert found is None if reason is None else reason in found


def test_what_is_differentiable_may_be_called_for_a_gradient():
    wanted = torch.nn.Parameter(ROWS)
    assert "gradient" in why_not_direct((X, [wanted]))
    assert why_not_direct((X, [wanted]), differentiable=True) is None
    assert "class" in why_not_direct((wanted, [X.as_subclass(Mine)]), differentiable=True)


@pytest.mark.parametrize("op", [lambda x: ops.linear(x, X[0], None), lambda x: ops.linear_gelu(x, X[0], X[0, :, 0])])
def test_results_can_be_changed_where_a_gradient_is_wanted_again(op):
    with torch.no_grad():
        out = op(X)
    out += torch.ones(3, requires_grad=True)
    assert out.requires_grad
