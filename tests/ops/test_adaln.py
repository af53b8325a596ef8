# SPDX-License-Identifier: Apache-2.0
"""What is special to adaln: errors, broadcast rows, autocast, hard numbers. Parity is in test_parity."""

import pytest
import torch

from dit_fast.ops import BackendUnavailable, adaln, use_backend
from dit_fast.ops.adaln.autograd import OP

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

ROWS = ("shift", "scale")


def inputs(n=2, t=5, d=24, dtype=torch.float32):
    rows = {name: normal(n, d, dtype=dtype, seed=i) for i, name in enumerate(ROWS)}
    return {"x": normal(n, t, d, dtype=dtype, seed=9), **rows}


@pytest.mark.parametrize(
    "argument,value,message",
    [
        ("x", torch.zeros(2, 24), r"adaln: `x` must be of shape \(N, T, D\), got shape \(2, 24\)"),
        ("x", torch.zeros(2, 5, 24, dtype=torch.int64), r"`x` must be floating point, got torch.int64"),
        ("x", [1.0], r"`x` must be a tensor, got list"),
        ("shift", torch.zeros(3, 24), r"`shift` must be of shape \(2, 24\), got shape \(3, 24\)"),
        ("scale", torch.zeros(2, 1, 24), r"`scale` must be of shape \(2, 24\), got shape \(2, 1, 24\)"),
        ("scale", torch.zeros(2, 25), r"`scale` must be of shape \(2, 24\), got shape \(2, 25\)"),
        ("shift", torch.zeros(2, 24).half(), r"`shift` must be torch.float32 like `x`, got torch.float16"),
        ("scale", torch.zeros(2, 24, device="meta"), r"`scale` must be on cpu like `x`, got meta"),
    ],
)
def test_wrong_arguments_are_named(argument, value, message):
    with pytest.raises(ValueError, match=message):
        adaln(**{**inputs(), argument: value})


def test_an_explicit_backend_gives_its_reason():
    with use_backend("cuda"), pytest.raises(BackendUnavailable, match=r"adaln: .*'cuda'.* are on cpu"):
        adaln(**inputs())
    with use_backend("cpu"), pytest.raises(BackendUnavailable, match=r"torch\.float64 is not among"):
        adaln(**inputs(dtype=torch.float64))


@pytest.mark.parametrize("backend", KERNELS)
def test_one_row_for_all_samples(backend):
    check_expanded_rows(adaln, inputs(3), ROWS, backend)


@pytest.mark.parametrize("backend", ("reference", *KERNELS))
def test_autocast(backend):
    check_autocast(adaln, inputs(), ROWS, backend)


@pytest.mark.parametrize("backend", KERNELS)
def test_a_large_mean_does_not_eat_the_variance(backend):
    check_large_mean(adaln, inputs(d=384), backend)


@pytest.mark.parametrize("backend", KERNELS)
def test_a_constant_token_gives_the_shift_alone(backend):
    given = inputs()
    given["x"] = torch.full_like(given["x"], 3.0).requires_grad_()
    with use_backend(backend):
        h = adaln(**given)
    assert torch.equal(h, given["shift"].unsqueeze(1).expand_as(h))
    (dx,) = torch.autograd.grad(h.square().sum(), given["x"])
    assert dx.isfinite().all()


@pytest.mark.parametrize("backend", KERNELS)
def test_eps_is_used(backend):
    given = inputs()
    given["x"] = given["x"] * 1e-3
    with use_backend(backend):
        h = adaln(**given, eps=1e-2)
    with use_backend("reference"):
        torch.testing.assert_close(h, adaln(**given, eps=1e-2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_number_of_threads_changes_no_bit(dtype):
    check_threads(adaln, inputs(3, 150, 72, dtype))


@pytest.mark.parametrize("backend", KERNELS)
def test_opcheck(backend):
    given = inputs()
    x, _, scale = (v.clone() for v in given.values())
    _, mean, rstd = OP.forward(*given.values(), 1e-6, backend)
    torch.library.opcheck(OP.forward, (*(v.requires_grad_() for v in given.values()), 1e-6, backend))
    torch.library.opcheck(OP.backward, (torch.ones_like(x), x, scale, mean, rstd, backend))


@pytest.mark.parametrize("backend", KERNELS)
def test_compiles_without_a_graph_break(backend):
    check_compiled(adaln, inputs(), backend)


def test_a_second_derivative_says_where_it_exists():
    check_second_derivative(adaln, inputs(), "adaln")
