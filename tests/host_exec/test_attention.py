# SPDX-License-Identifier: Apache-2.0
"""What is special to attention's CUDA kernels: ragged tiles of queries and keys, keys in parts, hard logits, limits."""

import pytest
import torch

from dit_fast.ops import BackendUnavailable, attention, use_backend
from dit_fast.ops.attention.autograd import OP
from dit_fast.parity import poisoned, run
from tests.host_exec.backend import NAME, host_exec
from tests.ops.test_attention import check, hard, normal

HALVES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])


@pytest.fixture(params=[80, 86])
def capability(request):
    """86 has less shared memory: 128 keys at a time instead of 256."""
    host_exec.set_compute_capability(request.param)
    yield request.param
    host_exec.set_compute_capability(80)


def separate(queries, keys, dtype):
    tokens = {"q": queries, "k": keys, "v": keys}
    return {name: normal(1, t, 1, 72, dtype=dtype, seed=i) for i, (name, t) in enumerate(tokens.items())}


@HALVES
@pytest.mark.parametrize(("queries", "keys"), [(1, 33), (130, 2), (17, 129), (65, 256), (5, 257), (20, 600)])
def test_ragged_queries_and_keys(queries, keys, dtype, capability):
    check(NAME, dtype, **separate(queries, keys, dtype))


@HALVES
@pytest.mark.parametrize("tokens", [63, 257])
@pytest.mark.parametrize("kind", ["logits to 1e4", "identical rows", "one-hot"])
def test_hard_logits(kind, tokens, dtype):
    check(NAME, dtype, q=hard(kind, tokens, dtype, h=1)[:1])


@HALVES
@pytest.mark.parametrize("gain", [3, 8])
def test_sharp_rows(gain, dtype):
    """Few probabilities of a row are large: dP - delta cancels, and rowsum(dout * out) would not do for delta."""
    qkv = normal(1, 64, 3, 1, 64, dtype=torch.float64)
    qkv[:, :, :2] *= gain
    check(NAME, dtype, q=qkv.to(dtype))


@pytest.mark.parametrize("scale", [0.3, 0.0, -1.0])
def test_custom_scale(scale):
    check(NAME, torch.bfloat16, **separate(5, 37, torch.bfloat16), scale=scale)


@pytest.mark.parametrize("keys", [1, 40])
def test_lse(keys):
    q, k, v = separate(9, keys, torch.bfloat16).values()
    with poisoned():
        _, lse = OP.forward(q, k, v, None, None, 2.0, 0, 0.0, NAME)
    wanted = torch.logsumexp(2.0 * torch.einsum("nqhd,nkhd->nhqk", q.double(), k.double()), -1)
    torch.testing.assert_close(lse.double(), wanted, rtol=1e-6, atol=1e-5)


def test_one_key_passes_its_value_through(capability):
    given = separate(7, 1, torch.bfloat16)
    with use_backend(NAME), poisoned():
        got = run(attention, given, tuple(given), torch.bfloat16)
    assert torch.equal(got["out0"], given["v"].flatten(2).expand(-1, 7, -1))
    assert not got["dq"].any() and not got["dk"].any()


def test_no_bit_depends_on_the_order_of_threads_where_keys_come_in_parts():
    given, results = separate(70, 300, torch.bfloat16), []
    for order, seed in (("ascending", 0), ("descending", 0), ("random", 1)):
        host_exec.set_order(order, seed)
        with use_backend(NAME), poisoned():
            results.append(run(attention, given, tuple(given), torch.bfloat16))
    host_exec.set_order("ascending")
    for other in results[1:]:
        assert all(torch.equal(value, other[key]) for key, value in results[0].items())


def test_strides_beyond_32_bits():
    """Samples 2^31 elements apart: memory that nobody touches costs nothing."""
    given = {name: normal(2, 9, 1, 64, dtype=torch.bfloat16, seed=i) for i, name in enumerate("qkv")}
    room = torch.empty(2**31 + 2**16, dtype=torch.bfloat16)
    far = {}
    for i, (name, heads) in enumerate(given.items()):
        far[name] = room.as_strided(heads.shape, (2**31, 64, 64, 1), 1024 * i).copy_(heads)
    with use_backend(NAME):
        near, apart = (run(attention, g, tuple(g), torch.bfloat16) for g in (given, far))
    assert all(torch.equal(apart[key], value) for key, value in near.items())


@pytest.mark.parametrize(
    ("dtype", "dim", "reason"),
    [(torch.float32, 64, "take bfloat16 and float16"), (torch.bfloat16, 80, "head dim 80 is not among")],
)
def test_what_has_no_kernel_is_refused(dtype, dim, reason):
    q = normal(1, 3, 3, 1, dim, dtype=dtype)
    with use_backend(NAME), pytest.raises(BackendUnavailable, match=reason):
        attention(q)
    with pytest.raises(RuntimeError, match="attention: "):  # past the op's own checks, as a direct caller would
        torch.ops.dit_fast_host_exec.attention(q, None, None, None, None, 1.0, 0, 0.0)
