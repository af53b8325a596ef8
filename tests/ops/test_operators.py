# SPDX-License-Identifier: Apache-2.0
"""What every operator owes torch: opcheck, one compiled graph, uncopied views, an honest choice of backend."""

import logging

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dit_fast import ops
from dit_fast.ops import BackendUnavailable, current_backend, specs, use_backend
from dit_fast.ops._core import OPS, Op, backends, op
from dit_fast.parity import run

SPECS = specs()
DIFFERENTIABLE = [name for name, spec in SPECS.items() if spec.gradients]
KERNELS = ("cpu", "triton")


class Recorder(TorchDispatchMode):
    """Keeps every call of an operator of ours."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "dit_fast":
            self.calls.append((func, args))
        return func(*args, **(kwargs or {}))


def recorded(spec, backend, dtype=torch.float32):
    inputs = spec.make(spec.cases[1], dtype)
    with use_backend(backend), Recorder() as recorder:
        run(spec.function, inputs, spec.gradients, dtype)
    return recorder.calls


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("name", SPECS)
def test_opcheck(name, backend):
    calls = recorded(SPECS[name], backend)
    both = [f"dit_fast.{name}.default", f"dit_fast.{name}_backward.default"]
    assert [str(func) for func, _ in calls] == (both if SPECS[name].gradients else both[:1])

    def leaf(argument, differentiable):
        if isinstance(argument, list):
            return [leaf(item, differentiable) for item in argument]
        if not isinstance(argument, torch.Tensor):
            return argument
        return argument.detach().clone().requires_grad_(differentiable and argument.is_floating_point())

    for func, arguments in calls:
        differentiable = bool(SPECS[name].gradients) and not str(func).endswith("_backward.default")
        torch.library.opcheck(func, tuple(leaf(a, differentiable) for a in arguments))


@pytest.mark.parametrize("name", SPECS)
def test_compiles_as_one_graph(name):
    spec = SPECS[name]
    inputs = spec.make(spec.cases[1], torch.float32)
    compiled = torch.compile(spec.function, fullgraph=True, backend="aot_eager")
    with use_backend("cpu"):
        plain = run(spec.function, inputs, spec.gradients, torch.float32)
        graph = run(compiled, inputs, spec.gradients, torch.float32)
    for key, value in plain.items():
        assert torch.equal(graph[key], value), key


def test_gradients_flow_through_auto():
    x, shift, scale = (torch.randn(s, requires_grad=True) for s in ((2, 3, 64), (2, 64), (2, 64)))
    ops.adaln(x, shift, scale).sum().backward()
    assert all(tensor.grad is not None for tensor in (x, shift, scale))


def test_the_backend_is_that_of_the_context_and_comes_back():
    before = current_backend()
    with use_backend("reference"):
        assert current_backend() == "reference"
        with pytest.raises(RuntimeError, match="inside"), use_backend("cpu"):
            raise RuntimeError("inside")
        assert current_backend() == "reference"
    assert current_backend() == before
    use_backend("triton")
    assert current_backend() == "triton"
    use_backend(before)
    with pytest.raises(ValueError, match=r"use_backend: `name` must be one of .*'cpu'.*, got 'fast'"):
        use_backend("fast")


def test_auto_says_once_what_it_chose_and_why(caplog):
    backends._announced.clear()
    x = torch.randn(1, 2, 8, dtype=torch.float64)
    with use_backend("auto"), caplog.at_level(logging.INFO, logger="dit_fast"):
        for _ in range(2):
            ops.adaln(x, x[:, 0], x[:, 0])
            ops.adaln(x.float(), x[:, 0].float(), x[:, 0].float())
    reference, cpu = caplog.messages
    assert "backend reference; not cpu (torch.float64 is not among" in reference
    assert cpu == "adaln on cpu: backend cpu"


def test_an_explicit_backend_never_falls_back():
    x = torch.randn(1, 2, 8, dtype=torch.float64)
    for backend in KERNELS:
        with use_backend(backend), pytest.raises(BackendUnavailable, match=r"adaln: .*torch\.float64 is not among"):
            ops.adaln(x, x[:, 0], x[:, 0])
    with use_backend("cuda"), pytest.raises(BackendUnavailable, match="tensors are on cpu"):
        ops.adaln(x.float(), x[:, 0].float(), x[:, 0].float())


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_no_second_derivative_says_so(name):
    spec = SPECS[name]
    inputs = spec.make(spec.cases[1], torch.float32)
    leaves = {k: inputs[k].detach().requires_grad_() for k in spec.gradients if inputs.get(k) is not None}
    with use_backend("cpu"):
        out = spec.function(**{**inputs, **leaves})
        out = out[-1] if isinstance(out, tuple) else out
        gradients = torch.autograd.grad(out.square().sum(), list(leaves.values()), create_graph=True)
        with pytest.raises(NotImplementedError, match=f"{name}: the kernels have no second derivative"):
            sum(g.sum() for g in gradients).backward()


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_no_forward_mode_says_so(name):
    """Tangents would be lost: torch.func.jvp of the kernels' result would be 0."""
    spec = SPECS[name]
    inputs = spec.make(spec.cases[1], torch.float32)
    wanted = next(k for k in spec.gradients if inputs.get(k) is not None)

    def function(tensor):
        out = spec.function(**{**inputs, wanted: tensor})
        return out[-1] if isinstance(out, tuple) else out

    def jvp():
        return torch.func.jvp(function, (inputs[wanted],), (torch.randn_like(inputs[wanted]),))[1]

    with use_backend("cpu"), pytest.raises(NotImplementedError, match=f"{name}: the kernels have no forward-mode"):
        jvp()
    with use_backend("reference"):
        assert jvp().abs().max() > 0


def test_a_registered_backend_is_used_and_named_like_the_others():
    op = OPS["gated_residual"]
    calls = []

    def forward(x, y, gate):
        calls.append("forward")
        return x + gate[:, None] * y

    def backward(dout, y, gate):
        calls.append("backward")
        return dout * gate[:, None], (dout * y).sum(1)

    op.register_backend("mine", forward, backward, lambda tensors: "too wide" if tensors[0].shape[-1] > 8 else None)
    try:
        x = torch.randn(2, 3, 8, requires_grad=True)
        gate = torch.randn(2, 8, requires_grad=True)
        with use_backend("mine"):
            ops.gated_residual(x, x, gate).sum().backward()
            with pytest.raises(BackendUnavailable, match="too wide"):
                ops.gated_residual(*(torch.randn(2, 3, 9),) * 2, torch.randn(2, 9))
            with pytest.raises(BackendUnavailable, match="adaln has no backend 'mine'"):
                ops.adaln(x, gate, gate)
        assert calls == ["forward", "backward"]
        with pytest.raises(ValueError, match="`name` must be new to gated_residual, got 'mine'"):
            op.register_backend("mine", forward, backward)
    finally:
        del op.backends["mine"]
        backends._names.discard("mine")


def test_chunk_views_reach_the_kernel_uncopied():
    seen = []
    backend = Op._backend

    def spy(self, name):
        pair = backend(self, name)
        return type(pair)(lambda *a: (seen.extend(a), pair.forward(*a))[1], pair.backward, pair.why_not)

    modulation = torch.randn(2, 6 * 64)
    shift, scale, gate, *_ = modulation.chunk(6, dim=1)
    x = torch.randn(2, 3, 64)
    Op._backend = spy
    try:
        with use_backend("cpu"):
            ops.gated_residual_adaln(x, x, gate, shift, scale)
    finally:
        Op._backend = backend
    pointers = {t.data_ptr() for t in seen if isinstance(t, torch.Tensor)}
    assert {t.data_ptr() for t in (x, shift, scale, gate)} <= pointers


def test_a_gpu_that_is_too_old_is_a_reason(monkeypatch):
    capability = {0: (7, 5), 1: (8, 0)}
    monkeypatch.setattr(torch.cuda, "get_device_capability", capability.get)
    monkeypatch.setattr(op, "_capability", {})
    assert "need compute capability (8, 0), this GPU has (7, 5)" in op.too_old(0)
    assert op.too_old(1) is None
    compiled = torch.compile(lambda x: x + (op.too_old(1) is None), fullgraph=True, backend="aot_eager")
    assert compiled(torch.zeros(1)).item() == 1
