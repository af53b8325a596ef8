# SPDX-License-Identifier: Apache-2.0
"""What only a GPU can tell of the CUDA backend: streams, graphs, devices, errors. `make gpu` runs these; parity with
float64 is `dit-fast parity`'s."""

import pytest
import torch

from dit_fast import ops
from dit_fast.ops import specs, use_backend
from dit_fast.parity import run

pytestmark = pytest.mark.skipif(not torch.cuda.device_count(), reason="there is no GPU here: `make gpu` on one")

SPECS = {name: spec for name, spec in specs().items() if "cuda" in spec.op.native}


def results(spec, inputs):
    with use_backend("cuda"):
        return run(spec.function, inputs, spec.gradients, torch.bfloat16)


@pytest.mark.parametrize("name", SPECS)
def test_two_runs_are_bit_equal(name):
    spec = SPECS[name]
    inputs = spec.make(spec.cases[3], torch.bfloat16, "cuda")
    first, second = results(spec, inputs), results(spec, inputs)
    for key, value in first.items():
        assert torch.equal(value, second[key]), key


@pytest.mark.parametrize("name", SPECS)
def test_on_a_stream_of_its_own(name):
    """Work queued behind a long pause on another stream: a kernel on the default stream would read too early."""
    spec = SPECS[name]
    inputs = spec.make(spec.cases[1], torch.bfloat16, "cuda")
    wanted = results(spec, inputs)
    late = {k: torch.full_like(v, float("nan")) if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}
    if any(isinstance(v, list) for v in inputs.values()):
        pytest.skip("an optimizer's lists are stepped in place; its graph test covers the stream")
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        for key, value in inputs.items():
            if isinstance(value, torch.Tensor):
                late[key].copy_(value)
        got = results(spec, late)
    stream.synchronize()
    for key, value in wanted.items():
        assert torch.equal(value, got[key]), key


@pytest.mark.parametrize("name", SPECS)
def test_replays_of_a_captured_graph(name):
    spec = SPECS[name]
    if not spec.gradients:
        pytest.skip("tests/optim captures a whole step")
    inputs = spec.make(spec.cases[2], torch.bfloat16, "cuda")
    other = spec.make(spec.cases[2], torch.bfloat16, "cuda", seed=9)
    results(spec, inputs)  # the library's modules load outside the capture
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with use_backend("cuda"), torch.cuda.graph(graph), torch.no_grad():
        captured = spec.function(**inputs)
    captured = captured if isinstance(captured, tuple) else (captured,)
    for key, value in inputs.items():
        if isinstance(value, torch.Tensor):
            value.copy_(other[key])
    graph.replay()
    torch.cuda.synchronize()
    wanted = results(spec, other)
    for i, value in enumerate(captured):
        assert torch.equal(value, wanted[f"out{i}"])


@pytest.mark.parametrize("name", SPECS)
def test_the_backward_is_captured_too(name):
    spec = SPECS[name]
    if not spec.gradients:
        pytest.skip("it has no backward")
    inputs = spec.make(spec.cases[2], torch.bfloat16, "cuda")
    wanted = results(spec, inputs)
    leaves = {k: v.detach().requires_grad_(k in spec.gradients) for k, v in inputs.items() if torch.is_tensor(v)}
    leaves = {k: v for k, v in leaves.items() if v.requires_grad}
    side = torch.cuda.Stream()
    generator = torch.Generator().manual_seed(1)  # as dit_fast.parity.run draws its cotangents
    with torch.cuda.stream(side), use_backend("cuda"):
        outputs = spec.function(**{**inputs, **leaves})
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        cotangents = [torch.randn(o.shape, generator=generator, dtype=torch.float64).bfloat16().cuda() for o in outputs]
        torch.autograd.grad(outputs, list(leaves.values()), cotangents, retain_graph=True)
        side.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=side):
            gradients = torch.autograd.grad(outputs, list(leaves.values()), cotangents, retain_graph=True)
        graph.replay()
        side.synchronize()
    for key, value in zip(leaves, gradients, strict=True):
        assert torch.equal(value, wanted[f"d{key}"]), key


def test_a_tensor_of_another_device_than_the_current_one():
    if torch.cuda.device_count() < 2:
        pytest.skip("there is one GPU only")
    x = torch.randn(2, 3, 64, device="cuda:1")
    with use_backend("cuda"):
        got = ops.adaln(x, x[:, 0], x[:, 1])
    assert got.device == x.device and torch.cuda.current_device() == 0
    with use_backend("reference"):
        torch.testing.assert_close(got, ops.adaln(x, x[:, 0], x[:, 1]))


def test_an_error_of_a_launch_is_an_exception_and_leaves_the_device_usable():
    x = torch.zeros(1, 2, 12, device="cuda")
    with pytest.raises(RuntimeError, match="adaln: invalid argument"):  # past the op's own checks
        torch.ops.dit_fast_native.adaln(x, x[:, 0], x[:, 0], 1e-6)
    assert torch.ones(2, device="cuda").sum().item() == 2
