# SPDX-License-Identifier: Apache-2.0
"""What is special to attention's CUDA kernels of sm_90a: which runs where, tiles that end early, hard logits, views."""

import pytest
import torch

from dit_fast.ops import attention, use_backend
from dit_fast.ops._core import Case
from dit_fast.ops.attention.spec import SPEC
from dit_fast.parity import check_case, poisoned, run
from tests.host_exec.backend import NAME, host_exec
from tests.ops.test_attention import check, hard, normal

FORWARD, DKDV = 288, 384  # threads of a block; the sm_80 kernels have up to 256


@pytest.fixture(autouse=True)
def hopper():
    host_exec.set_compute_capability(90)
    yield
    host_exec.set_compute_capability(80)
    host_exec.set_multiprocessors(132)
    host_exec.set_order("ascending")


def parity(dtype, **dims):
    for row in check_case(SPEC, NAME, dtype, Case("", dims)):
        assert row.passed, row
    assert host_exec.last_block() == DKDV


@pytest.mark.parametrize("t", [1, 2, 63, 250, 256, 257])
def test_any_number_of_tokens(t):
    """64 and fewer keys, a whole head on chip, more than that."""
    parity(torch.bfloat16, N=1, T=t, H=1, Dh=72)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("dh", [64, 72])
@pytest.mark.parametrize("t,s", [(63, 2), (130, 70), (33, 300)])
def test_other_numbers_of_keys(t, s, dh, dtype):
    parity(dtype, N=1, T=t, S=s, H=2, Dh=dh)


@pytest.mark.parametrize("t,s", [(33, 1024), (1024, 33)])
def test_many_tokens(t, s):
    """More tiles than a ring has stages, several times over."""
    parity(torch.bfloat16, N=1, T=t, S=s, H=1, Dh=72)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("kind,t", [("logits to 1e4", 63), ("identical rows", 63), ("one-hot", 63),
                                    ("logits to 1e4", 100), ("logits to 1e4", 300)])  # fmt: skip
def test_hard_logits(kind, t, dtype):
    check(NAME, dtype, q=hard(kind, t, dtype, h=1))


def test_logits_far_below_zero():
    """Of keys that do not exist, whose logit of 0 is far above all others."""
    qkv = normal(1, 70, 3, 1, 72, dtype=torch.float64)
    qkv[:, :, 0] -= 40
    qkv[:, :, 1] += 40
    check(NAME, torch.bfloat16, q=qkv.bfloat16())


@pytest.mark.parametrize("scale", [0.0, -1.0])
def test_custom_scale(scale):
    check(NAME, torch.bfloat16, q=normal(1, 70, 3, 1, 72, dtype=torch.bfloat16, gain=1.5), scale=scale)


def test_the_bits_depend_on_nothing_else():
    """Neither on the order of threads nor on how many blocks take turns at the heads."""
    q = normal(1, 70, 3, 3, 72, dtype=torch.bfloat16)
    few = {name: normal(1, t, 3, 64, dtype=torch.bfloat16, seed=t) for name, t in (("q", 70), ("k", 7), ("v", 7))}
    results = []
    for order, multiprocessors in (("ascending", 132), ("descending", 2), ("random", 1)):
        host_exec.set_order(order, 3)
        host_exec.set_multiprocessors(multiprocessors)
        with use_backend(NAME), poisoned():
            results.append(run(attention, {"q": q}, ("q",), q.dtype) | {
                f"few {k}": v for k, v in run(attention, few, tuple(few), q.dtype).items()})  # fmt: skip
    for other in results[1:]:
        assert all(torch.equal(other[k], v) for k, v in results[0].items())


LAYOUTS = {
    "heads first": lambda t: normal(2, 2, t, 72, dtype=torch.bfloat16, seed=t).transpose(1, 2),
    "every other token": lambda t: normal(2, 2 * t, 2, 72, dtype=torch.bfloat16, seed=t)[:, ::2],
    "wider rows": lambda t: normal(2, t, 2, 80, dtype=torch.bfloat16, seed=t)[..., :72],
    "samples inmost": lambda t: normal(t, 2, 2, 72, dtype=torch.bfloat16, seed=t).permute(1, 0, 2, 3),
}


@pytest.mark.parametrize("make", LAYOUTS.values(), ids=LAYOUTS)
def test_views(make):
    check(NAME, torch.bfloat16, q=make(33), k=make(65), v=make(65))
    assert host_exec.last_block() == DKDV


def test_what_tma_cannot_describe_goes_to_sm80():
    q = normal(1, 5, 2, 72, dtype=torch.bfloat16)
    with use_backend(NAME):
        attention(q, q, q)
        assert host_exec.last_block() == FORWARD
        shared = q[:, :, :1].expand(-1, -1, 2, -1)  # a stride of 0
        attention(q, shared, shared)
        assert host_exec.last_block() < FORWARD
        host_exec.set_compute_capability(100)
        attention(q, q, q)
        assert host_exec.last_block() < FORWARD
