# SPDX-License-Identifier: Apache-2.0
"""What is special to gated_residual_adaln: errors, outputs that go unused, the rounded stream, hard numbers.

Parity is in test_parity.
"""

import pytest
import torch
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd

from dit_fast.ops import adaln, gated_residual, gated_residual_adaln, use_backend
from dit_fast.ops.gated_residual_adaln.autograd import OP

from .adaln_family import (
    KERNELS,
    check_autocast,
    check_compiled,
    check_expanded_rows,
    check_large_mean,
    check_second_derivative,
    check_threads,
    normal,
)

ROWS = ("gate", "shift", "scale")


def inputs(n=2, t=5, d=24, dtype=torch.float32):
    rows = {name: normal(n, d, dtype=dtype, seed=i) for i, name in enumerate(ROWS)}
    x, y = (normal(n, t, d, dtype=dtype, seed=i) for i in (8, 9))
    return {"x": x, "y": y, **rows}


def leaves_of(given):
    return {k: v.detach().clone().requires_grad_() for k, v in given.items()}


@pytest.mark.parametrize(
    "argument,value,message",
    [
        ("x", torch.zeros(24), r"gated_residual_adaln: `x` must be of shape \(N, T, D\), got shape \(24,\)"),
        ("y", torch.zeros(3, 5, 24), r"`y` must be of shape \(2, 5, 24\), got shape \(3, 5, 24\)"),
        ("y", 1.0, r"`y` must be a tensor, got float"),
        ("gate", torch.zeros(3, 24), r"`gate` must be of shape \(2, 24\), got shape \(3, 24\)"),
        ("shift", torch.zeros(2, 12), r"`shift` must be of shape \(2, 24\), got shape \(2, 12\)"),
        ("scale", torch.zeros(24), r"`scale` must be of shape \(2, 24\), got shape \(24,\)"),
        ("scale", torch.zeros(2, 24).half(), r"`scale` must be torch.float32 like `x`, got torch.float16"),
        ("gate", torch.zeros(2, 24, device="meta"), r"`gate` must be on cpu like `x`, got meta"),
    ],
)
def test_wrong_arguments_are_named(argument, value, message):
    with pytest.raises(ValueError, match=message):
        gated_residual_adaln(**{**inputs(), argument: value})


@pytest.mark.parametrize("used", ["x_new", "h"])
@pytest.mark.parametrize("backend", KERNELS)
def test_one_output_unused(backend, used):
    gradients = []
    for name in ("reference", backend):
        leaves = leaves_of(inputs())
        with use_backend(name):
            x_new, h = gated_residual_adaln(**leaves)
        cost = (h if used == "h" else x_new).sin().sum()
        gradients.append(torch.autograd.grad(cost, list(leaves.values()), materialize_grads=True))
    for wanted, got in zip(*gradients, strict=True):
        torch.testing.assert_close(got, wanted)


def test_an_unused_x_new_makes_no_zeros(monkeypatch):
    received, backward = [], OP.backward
    monkeypatch.setattr(OP, "backward", lambda *a: received.append(a[0]) or backward(*a))
    with use_backend("cpu"):
        gated_residual_adaln(**leaves_of(inputs()))[1].sum().backward()
    assert received == [None]


def test_an_unused_x_new_makes_no_zeros_when_compiled():
    graphs = []

    def keep(graph, _):
        graphs.append(graph)
        return make_boxed_func(graph)

    def last_norm(**given):
        return gated_residual_adaln(**given)[1]

    recorder = aot_autograd(fw_compiler=keep, bw_compiler=keep)
    compiled = torch.compile(last_norm, fullgraph=True, backend=recorder)
    with use_backend("cpu"):
        compiled(**leaves_of(inputs())).sum().backward()
    (node,) = (n for n in graphs[-1].graph.nodes if n.target is OP.backward)
    assert node.args[0] is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", KERNELS)
def test_the_norm_sees_the_rounded_stream(backend, dtype):
    """The two ops that it fuses give the same bits: what the next block adds to is what this norm saw."""
    given = inputs(2, 7, 72, dtype)
    with use_backend(backend):
        x_new, h = gated_residual_adaln(**given)
        stream = gated_residual(given["x"], given["y"], given["gate"])
        assert torch.equal(x_new, stream)
        assert torch.equal(h, adaln(stream, given["shift"], given["scale"]))


@pytest.mark.parametrize("backend", KERNELS)
def test_one_row_for_all_samples(backend):
    check_expanded_rows(gated_residual_adaln, inputs(3), ROWS, backend)


@pytest.mark.parametrize("backend", ("reference", *KERNELS))
def test_autocast(backend):
    check_autocast(gated_residual_adaln, inputs(), ROWS, backend)


@pytest.mark.parametrize("backend", KERNELS)
def test_a_large_mean_does_not_eat_the_variance(backend):
    check_large_mean(gated_residual_adaln, inputs(d=384), backend)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_number_of_threads_changes_no_bit(dtype):
    check_threads(gated_residual_adaln, inputs(3, 150, 72, dtype))


@pytest.mark.parametrize("backend", KERNELS)
def test_opcheck(backend):
    given = inputs()
    _, y, gate, _, scale = (v.clone() for v in given.values())
    x_new, h, mean, rstd = OP.forward(*given.values(), 1e-6, backend)
    torch.library.opcheck(OP.forward, (*(v.requires_grad_() for v in given.values()), 1e-6, backend))
    for dx_new in (None, torch.ones_like(h)):
        saved = (x_new, y, gate, scale, mean, rstd)
        torch.library.opcheck(OP.backward, (dx_new, torch.ones_like(h), *saved, backend))


@pytest.mark.parametrize("backend", KERNELS)
def test_compiles_without_a_graph_break(backend):
    check_compiled(gated_residual_adaln, inputs(), backend)


def test_a_second_derivative_says_where_it_exists():
    check_second_derivative(gated_residual_adaln, inputs(), "gated_residual_adaln")
