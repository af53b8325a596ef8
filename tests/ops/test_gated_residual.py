# SPDX-License-Identifier: Apache-2.0
"""What is special to gated_residual: errors, broadcast gates, autocast, its dx. Parity is in test_parity."""

import pytest
import torch

from dit_fast.ops import gated_residual, use_backend
from dit_fast.ops._core import native
from dit_fast.ops.gated_residual.autograd import OP

from .adaln_family import (
    KERNELS,
    check_autocast,
    check_compiled,
    check_expanded_rows,
    check_second_derivative,
    check_threads,
    normal,
)

ROWS = ("gate",)


def inputs(n=2, t=5, d=24, dtype=torch.float32):
    x, y = (normal(n, t, d, dtype=dtype, seed=i) for i in (1, 2))
    return {"x": x, "y": y, "gate": normal(n, d, dtype=dtype, seed=3)}


@pytest.mark.parametrize(
    "argument,value,message",
    [
        ("x", torch.zeros(2, 24), r"gated_residual: `x` must be of shape \(N, T, D\), got shape \(2, 24\)"),
        ("x", None, r"`x` must be a tensor, got NoneType"),
        ("y", torch.zeros(3, 5, 24), r"`y` must be of shape \(2, 5, 24\), got shape \(3, 5, 24\)"),
        ("y", torch.zeros(2, 6, 24), r"`y` must be of shape \(2, 5, 24\), got shape \(2, 6, 24\)"),
        ("y", torch.zeros(2, 5, 24).half(), r"`y` must be torch.float32 like `x`, got torch.float16"),
        ("gate", torch.zeros(1, 24), r"`gate` must be of shape \(2, 24\), got shape \(1, 24\)"),
        ("gate", torch.zeros(2, 24, dtype=torch.int32), r"`gate` must be floating point, got torch.int32"),
        ("gate", torch.zeros(2, 24, device="meta"), r"`gate` must be on cpu like `x`, got meta"),
    ],
)
def test_wrong_arguments_are_named(argument, value, message):
    with pytest.raises(ValueError, match=message):
        gated_residual(**{**inputs(), argument: value})


@pytest.mark.parametrize("backend", KERNELS)
def test_one_gate_for_all_samples(backend):
    check_expanded_rows(gated_residual, inputs(3), ROWS, backend)


@pytest.mark.parametrize("backend", ("reference", *KERNELS))
def test_autocast(backend):
    check_autocast(gated_residual, inputs(), ROWS, backend)


@pytest.mark.parametrize("backend", KERNELS)
def test_dx_is_the_incoming_gradient_itself(backend):
    """No copy of it is made, and it may be strided: an expanded ones is what sum() sends."""
    given = {k: v.requires_grad_() for k, v in inputs(dtype=torch.bfloat16).items()}
    with use_backend(backend):
        out = gated_residual(**given)
    dout = torch.ones((), dtype=torch.bfloat16).expand_as(out)
    (dx,) = torch.autograd.grad(out, given["x"], dout)
    assert dx.data_ptr() == dout.data_ptr() and dx.stride() == dout.stride()


@pytest.mark.parametrize("backend", KERNELS)
def test_a_zero_gate_leaves_x_unchanged(backend):
    """As at initialisation: adaLN-Zero makes every block the identity."""
    given = inputs(dtype=torch.bfloat16)
    given["gate"] = torch.zeros_like(given["gate"])
    with use_backend(backend):
        assert torch.equal(gated_residual(**given), given["x"])


@pytest.fixture(params=[*native.instruction_sets(), "triton"])
def backend_by_instruction_set(request):
    if request.param == "triton":
        yield "triton"
        return
    before = native.instruction_set()
    native.set_instruction_set(request.param)
    yield "cpu"
    native.set_instruction_set(before)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning", "ignore:overflow:RuntimeWarning")  # numpy's
@pytest.mark.parametrize("dtype,fraction_bits", [(torch.bfloat16, 7), (torch.float16, 10)])
def test_ties_round_to_even(backend_by_instruction_set, dtype, fraction_bits):
    """Every 16-bit number plus half a unit of its last place, infinities and NaN too: random data has no ties."""
    pattern = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(1, 64, 1024)
    x, y = (p.view(dtype) for p in (pattern, pattern & -(2**fraction_bits)))  # y is x's power of two
    gate = torch.full((1, 1024), 2.0 ** -(fraction_bits + 1), dtype=dtype)
    with use_backend(backend_by_instruction_set):
        out = gated_residual(x, y, gate)
    wanted = (x.float() + gate.float()[:, None] * y.float()).to(dtype)
    assert torch.equal(out.isnan(), wanted.isnan())
    known = ~wanted.isnan()
    assert torch.equal(out[known].view(torch.int16), wanted[known].view(torch.int16))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_number_of_threads_changes_no_bit(dtype):
    check_threads(gated_residual, inputs(3, 150, 72, dtype))


@pytest.mark.parametrize("backend", KERNELS)
def test_opcheck(backend):
    given = inputs()
    _, y, gate = (v.clone() for v in given.values())
    torch.library.opcheck(OP.forward, (*(v.requires_grad_() for v in given.values()), backend))
    torch.library.opcheck(OP.backward, (torch.ones_like(y), y, gate, backend))


@pytest.mark.parametrize("backend", KERNELS)
def test_compiles_without_a_graph_break(backend):
    check_compiled(gated_residual, inputs(), backend)


def test_a_second_derivative_says_where_it_exists():
    check_second_derivative(gated_residual, inputs(), "gated_residual")
