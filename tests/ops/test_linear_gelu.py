# SPDX-License-Identifier: Apache-2.0
"""What is special to linear_gelu: any leading shape, what is kept, the GELU over its whole range, autocast, errors."""

import pytest
import torch
import torch.nn.functional as F

from dit_fast.ops import linear_gelu, use_backend
from dit_fast.ops.linear_gelu import cpu_linear, reference
from dit_fast.ops.linear_gelu.autograd import OP
from dit_fast.parity import compare, poisoned, run

KERNELS = ("cpu", "triton")
NAMES = ("x", "weight", "bias")


def inputs(*rows, k=24, f=40, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    shapes = ((*rows, k), (f, k), (f,))
    return {n: torch.randn(s, generator=generator).to(dtype) for n, s in zip(NAMES, shapes, strict=True)}


@pytest.mark.parametrize("rows", [(), (5,), (2, 3, 2), (0,), (2, 0, 3)])
@pytest.mark.parametrize("backend", KERNELS)
def test_any_leading_shape(backend, rows):
    given = inputs(*rows)
    with use_backend(backend), poisoned():
        got = run(linear_gelu, given, NAMES, torch.float32)
    wanted = run(reference, given, NAMES, torch.float32)
    for key, value in wanted.items():
        torch.testing.assert_close(got[key], value)


@pytest.mark.parametrize("rows", [64, 65, 200])
@pytest.mark.parametrize("backend", KERNELS)
def test_tile_borders(backend, rows):
    """Few and many rows take different tiles; several groups of tiles; nothing summed over K twice or never."""
    given = inputs(rows, k=130, f=130, dtype=torch.bfloat16)
    exact = run(reference, {k: v.double() for k, v in given.items()}, NAMES, torch.bfloat16)
    eager = run(reference, given, NAMES, torch.bfloat16)
    with use_backend(backend), poisoned():
        got = run(linear_gelu, given, NAMES, torch.bfloat16)
    for key in exact:
        assert compare(got[key], eager[key], exact[key], torch.bfloat16)[2] <= 1.0, key


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_cpu_without_a_choice_has_pytorchs_products(monkeypatch, dtype):
    monkeypatch.setattr(cpu_linear, "CHOICE", {})
    given = inputs(2, 33, dtype=dtype)
    exact = run(reference, {k: v.double() for k, v in given.items()}, NAMES, dtype)
    eager = run(reference, given, NAMES, dtype)
    with use_backend("cpu"), poisoned():
        got = run(linear_gelu, given, NAMES, dtype)
    for key in exact:
        assert compare(got[key], eager[key], exact[key], dtype)[2] <= 1.0, key


@pytest.mark.parametrize("parts", [1, 3])
def test_a_partial_sum_of_many_rows(monkeypatch, parts):
    """Beyond 32 * PARTS rows a program of the Triton backward walks over several tiles, the last one ragged."""
    from dit_fast.ops.linear_gelu import triton_kernel

    monkeypatch.setattr(triton_kernel, "PARTS", parts)
    given = inputs(135, dtype=torch.float32)
    with use_backend("triton"), poisoned():
        got = run(linear_gelu, given, NAMES, torch.float32)
    for key, value in run(reference, given, NAMES, torch.float32).items():
        torch.testing.assert_close(got[key], value, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", KERNELS)
def test_gelu_over_its_whole_range(backend, dtype):
    """A weight of 1 shows the GELU itself and its derivative, elementwise, tails included."""
    x = torch.cat([torch.linspace(-12, 12, 501), torch.tensor([-1e4, -100.0, 0.0, 100.0, 1e4])]).to(dtype)[:, None]
    weight, bias = torch.ones(1, 1, dtype=dtype), torch.zeros(1, dtype=dtype)
    x.requires_grad_()
    with use_backend(backend):
        y = linear_gelu(x, weight, bias)
    (dx,) = torch.autograd.grad(y, x, torch.ones_like(y))
    exact_x = x.detach().double().requires_grad_()
    exact = F.gelu(exact_x, approximate="tanh")
    (exact_dx,) = torch.autograd.grad(exact.sum(), exact_x)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(y.double(), exact, rtol=eps, atol=2e-6)
    torch.testing.assert_close(dx.double(), exact_dx, rtol=eps, atol=4e-6)


@pytest.mark.parametrize("backend", KERNELS)
def test_the_preactivation_is_kept_for_a_gradient_only(backend, monkeypatch):
    kept, call = [], type(OP).__call__

    def spy(op, *arguments):
        y, u = call(op, *arguments)
        kept.append(u.shape)
        return y, u

    monkeypatch.setattr(type(OP), "__call__", spy)
    given = inputs(5)
    with use_backend(backend):
        plain = linear_gelu(**given)
        for name in NAMES:
            wanting = {**given, name: given[name].clone().requires_grad_()}
            assert torch.equal(linear_gelu(**wanting), plain)
            with torch.no_grad():
                linear_gelu(**wanting)
    assert kept == [(0, 40), *[(5, 40), (0, 40)] * 3]


def test_a_forward_that_kept_nothing_has_no_gradient():
    given = {k: v.requires_grad_() for k, v in inputs(5).items()}
    y, _ = OP.forward(*given.values(), False, "cpu")
    with pytest.raises(RuntimeError, match="linear_gelu: the forward ran with keep=False"):
        y.sum().backward()


@pytest.mark.parametrize("backend", ("reference", *KERNELS))
def test_autocast(backend):
    """As linear: inputs are cast, so mixed dtypes are legal; gradients have the inputs' dtypes."""
    given = inputs(2, 5)
    given["x"] = given["x"].bfloat16()
    with use_backend(backend):
        with torch.autocast("cpu", torch.bfloat16):
            got = run(linear_gelu, given, NAMES, torch.bfloat16)
        wanted = run(linear_gelu, {k: v.bfloat16() for k, v in given.items()}, NAMES, torch.bfloat16)
    assert got["out0"].dtype == torch.bfloat16
    assert [got[f"d{k}"].dtype for k in NAMES] == [torch.bfloat16, torch.float32, torch.float32]
    for key, value in wanted.items():
        assert torch.equal(got[key], value.to(got[key].dtype)), key


@pytest.mark.parametrize("backend", KERNELS)
def test_a_backward_inside_autocast_keeps_float32(backend):
    """The products of a float32 forward stay float32, wherever its backward is called."""
    given = {k: v.requires_grad_() for k, v in inputs(5).items()}
    with use_backend(backend):
        y = linear_gelu(**given)
        wanted = torch.autograd.grad(y.sum(), list(given.values()), retain_graph=True)
        with torch.autocast("cpu", torch.bfloat16):
            got = torch.autograd.grad(y.sum(), list(given.values()))
    assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("backend", KERNELS)
def test_compiles_without_a_graph_break(backend, grad):
    given = {k: v.requires_grad_(grad) for k, v in inputs(2, 5).items()}
    compiled = torch.compile(linear_gelu, fullgraph=True, backend="aot_eager")
    with use_backend(backend):
        wanted, got = linear_gelu(**given), compiled(**given)
        assert torch.equal(got, wanted)
        if grad:
            pairs = (torch.autograd.grad(y.sin().sum(), list(given.values())) for y in (got, wanted))
            assert all(torch.equal(a, b) for a, b in zip(*pairs, strict=True))


@pytest.mark.parametrize("backend", KERNELS)
def test_opcheck_without_a_gradient(backend):
    torch.library.opcheck(OP.forward, (*inputs(2, 5).values(), False, backend))


@pytest.mark.parametrize(
    "argument,value,message",
    [
        ("x", torch.zeros(5, 23), r"linear_gelu: `x` must be of shape \(\.\.\., 24\), got shape \(5, 23\)"),
        ("x", torch.tensor(1.0), r"`x` must be of shape \(\.\.\., 24\), got shape \(\)"),
        ("x", [1.0], r"`x` must be a tensor, got list"),
        ("x", torch.zeros(5, 24).long(), r"`x` must be floating point, got torch.int64"),
        ("weight", torch.zeros(24), r"`weight` must be of shape \(F, K\), got shape \(24,\)"),
        ("weight", torch.zeros(40, 24).half(), r"`weight` must be torch.float32 like `x`, got torch.float16"),
        ("bias", torch.zeros(41), r"`bias` must be of shape \(40,\), got shape \(41,\)"),
        ("bias", torch.zeros(40, device="meta"), r"`bias` must be on cpu like `x`, got meta"),
    ],
)
def test_wrong_arguments_are_named(argument, value, message):
    with pytest.raises(ValueError, match=message):
        linear_gelu(**{**inputs(5), argument: value})
