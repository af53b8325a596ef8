# SPDX-License-Identifier: Apache-2.0
"""Attention on processors that multiply pairs of bfloat16, through a twin of their instruction; its exponential."""

import functools
import math

import pytest
import torch

from dit_fast.ops import specs
from dit_fast.ops.attention import reference
from dit_fast.parity import compare, poisoned, run, to_float64
from tests.ops import cpu_twin
from tests.ops.test_attention import hard, normal

ISAS = ("avx2", "portable")
BF16 = torch.bfloat16
SPEC = specs()["attention"]
PLAIN = [case for case in SPEC.cases if 0 not in case.dims.values() and not {"norm", "affine", "rope"} & {*case.dims}]


def check(isa, **given):
    wanted = tuple(k for k, v in given.items() if isinstance(v, torch.Tensor))
    exact, eager = run(reference, to_float64(given), wanted, BF16), run(reference, given, wanted, BF16)
    with poisoned():
        got = run(functools.partial(cpu_twin.attention, isa), given, wanted, BF16)
    for key in exact:
        error, eager_error, ratio = compare(got[key], eager[key], exact[key], BF16)
        assert ratio <= 1.0, f"{key}: error {error:.2e}, eager {eager_error:.2e}"


@pytest.mark.parametrize("isa", ISAS)
def test_the_spec(isa):
    for case in PLAIN:
        check(isa, **SPEC.make(case, BF16))


@pytest.mark.parametrize("kind", ["logits to 1e4", "identical rows", "one-hot"])
@pytest.mark.parametrize("isa", ISAS)
def test_hard_logits(isa, kind):
    check(isa, q=hard(kind, 63, BF16))


@pytest.mark.parametrize("tq,tk,dh", [(97, 289, 7), (3, 1155, 1), (49, 577, 72)])
@pytest.mark.parametrize("isa", ISAS)
def test_odd_sizes_and_several_blocks(isa, tq, tk, dh):
    q, k, v = (normal(1, t, 2, dh, seed=i, dtype=BF16) for i, t in enumerate((tq, tk, tk)))
    check(isa, q=q, k=k, v=v, scale=-0.5)


@pytest.mark.parametrize("isa", ISAS)
def test_a_pair_is_multiplied_and_added(isa):
    a, b = (normal(4096, 2, seed=i).to(BF16) for i in range(2))
    sums = normal(4096, seed=2)
    got = cpu_twin.multiply_add(isa, sums, a, b).double()
    exact = sums.double() + (a.double() * b.double()).sum(1)
    # Two additions, each rounded at the size of what it made.
    second = sums.double() + a[:, 1].double() * b[:, 1].double()
    assert (got - exact).abs().le((second.abs() + exact.abs()) * 2**-24 * 1.001).all()
    assert (got != exact).any()  # it does round


@pytest.mark.parametrize("isa", ISAS)
def test_denormals_are_zero_in_a_product(isa):
    tiny = torch.full((16, 2), 1e-39, dtype=BF16)
    huge = torch.full((16, 2), 1e38, dtype=BF16)
    small = torch.full((16, 2), 1e-20, dtype=BF16)
    zero = torch.zeros(16)
    assert tiny.double().ne(0).all() and cpu_twin.multiply_add(isa, zero, tiny, huge).eq(0).all()
    assert cpu_twin.multiply_add(isa, zero, small, small).eq(0).all()
    assert cpu_twin.multiply_add(isa, zero + 1e-39, torch.zeros_like(small), small).eq(0).all()


@pytest.mark.parametrize("scale", [1.0, 0.125, -3.7])
@pytest.mark.parametrize("isa", ISAS)
def test_exp_over_its_whole_range(isa, scale):
    generator = torch.Generator().manual_seed(0)
    x = torch.cat([torch.linspace(-86.9, 87.9, 1 << 20), torch.randn(1 << 18, generator=generator)]) / scale
    exponent = x.double() * torch.tensor(scale).double()  # scale as float32
    exact = exponent.exp()
    # Without fused operations the rounding of scale * x, relative to it, comes on top.
    allowed = 1.5 * torch.exp2(torch.floor(exact.log2()) - 23)
    allowed += 0 if isa == "avx2" else exact * exponent.abs() * 2**-23
    assert ((cpu_twin.exp(isa, x, scale).double() - exact).abs() <= allowed).all()


@pytest.mark.parametrize("isa", ISAS)
def test_exp_at_the_ends(isa):
    ends = torch.tensor([-87.1, -200.0, -1e30, -math.inf, math.nan, 0.0, -0.0, 1e-30] * 2)
    wanted = torch.tensor([0.0, 0.0, 0.0, 0.0, math.nan, 1.0, 1.0, 1.0] * 2)
    assert torch.equal(cpu_twin.exp(isa, ends).nan_to_num(3), wanted.nan_to_num(3))
