# SPDX-License-Identifier: Apache-2.0
"""What is special to attention: hard logits, a third party, packed and separate heads, lse, scale, limits, errors."""

import importlib

import pytest
import torch
import torch.nn.functional as F

from dit_fast.ops import BackendUnavailable, attention, use_backend
from dit_fast.ops._core import Op
from dit_fast.ops.attention import reference
from dit_fast.ops.attention.autograd import OP
from dit_fast.parity import compare, poisoned, run

reference_module = importlib.import_module("dit_fast.ops.attention.reference")
KERNELS = ("cpu", "triton")
DTYPES = (torch.float32, torch.bfloat16)


def normal(*shape, dtype=torch.float32, seed=0, gain=1.0):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (values * gain).to(dtype)


def sdpa(q, k=None, v=None, *, scale=None):
    """The third party: PyTorch's attention on transposed heads."""
    q, k, v = (x.transpose(1, 2) for x in (q.unbind(2) if k is None else (q, k, v)))
    return F.scaled_dot_product_attention(q, k, v, scale=scale).transpose(1, 2).flatten(2)


def check(backend, dtype, **given):
    """Outputs and gradients against the third party in float64, by the rule of parity.py."""
    wanted = tuple(k for k, v in given.items() if isinstance(v, torch.Tensor))
    exact = run(sdpa, {k: v.double() if k in wanted else v for k, v in given.items()}, wanted, dtype)
    eager = run(reference, given, wanted, dtype)
    with use_backend(backend), poisoned():
        got = run(attention, given, wanted, dtype)
    for key in exact:
        error, eager_error, ratio = compare(got[key], eager[key], exact[key], dtype)
        assert ratio <= 1.0, f"{key}: error {error:.2e}, eager {eager_error:.2e}"


def hard(kind, t, dtype, h=2, dh=72):
    """Packed qkv (2, t, 3, h, dh) whose logits are hard."""
    qkv = normal(2, t, 3, h, dh, dtype=torch.float64)
    if kind == "logits to 1e4":
        qkv[:, :, :2] *= 50
    elif kind == "far below 0":  # where a key that is not there would count as a logit of 0
        qkv[:, :, :2] = qkv[:, :, :2].abs() * 10
        qkv[:, :, 1] *= -1
    elif kind == "identical rows":
        qkv = qkv[:, :1].expand(-1, t, -1, -1, -1).clone()
    elif kind == "one-hot":  # token i looks at token i alone: its own logit is 1e4 above the others
        qkv[:, :, :2] = 0
        for i in range(t):
            qkv[:, i, :2, :, i % dh] = (1e4 * dh**0.5) ** 0.5
    return qkv.to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["logits to 1e4", "far below 0", "identical rows", "one-hot"])
@pytest.mark.parametrize("backend", KERNELS)
def test_hard_logits(backend, kind, dtype):
    check(backend, dtype, q=hard(kind, 63, dtype))


@pytest.mark.parametrize("t", [1, 2, 63, 250, 256, 257, 1024])
@pytest.mark.parametrize("backend", KERNELS)
def test_any_number_of_tokens(backend, t):
    """Triton's interpreter is slow and its kernels walk over tokens alike at any width: a narrow one, one head."""
    n, dh = (1, 8) if backend == "triton" else (2, 72)
    check(backend, torch.bfloat16, q=normal(n, t, 3, 1, dh, dtype=torch.bfloat16))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tq,tk,dh", [(97, 289, 7), (5, 1155, 8), (49, 577, 72), (3, 2, 300), (250, 250, 64)])
def test_odd_sizes_and_several_blocks_on_the_cpu(dtype, tq, tk, dh):
    """Around the blocks of the kernel: 24, 48 and 96 queries, 288 and 1152 keys; the largest logit comes late."""
    q, k, v = (normal(1, t, 2, dh, seed=i, dtype=dtype) for i, t in enumerate((tq, tk, tk)))
    k[:, -1] *= 4
    check("cpu", dtype, q=q, k=k, v=v, scale=-0.5 / dh**0.5)


@pytest.mark.parametrize("scale", [0.3, 0.0, -1.0, -30.0])
@pytest.mark.parametrize("backend", KERNELS)
def test_custom_scale(backend, scale):
    """Of more keys than a kernel takes at a time, so that largest logits are compared with each other too."""
    q, k, v = (normal(2, t, 2, 24, seed=i) for i, t in enumerate((5, 300, 300)))
    check(backend, torch.float32, q=q, k=k, v=v, scale=scale)


def test_the_reference_agrees_with_the_third_party():
    q = normal(2, 33, 3, 2, 72, dtype=torch.float64)
    for key, value in run(sdpa, {"q": q}, ("q",), q.dtype).items():
        torch.testing.assert_close(run(reference, {"q": q}, ("q",), q.dtype)[key], value, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", ("reference", *KERNELS))
def test_one_key_passes_its_value_through(backend):
    """dq = dk = 0 exactly, so errors are measured against the terms that cancel."""
    q, k, v, cotangent = (normal(2, t, 2, 64, seed=i) for i, t in enumerate((7, 1, 1, 7)))
    leaves = [x.requires_grad_() for x in (q, k, v)]
    with use_backend(backend):
        out = attention(*leaves)
    torch.testing.assert_close(out, v.expand(-1, 7, -1, -1).flatten(2))
    dq, dk, dv = torch.autograd.grad(out, leaves, cotangent.flatten(2))
    torch.testing.assert_close(dv, cotangent.sum(1, keepdim=True))
    assert dq.abs().max() < 1e-5 and dk.abs().max() < 1e-5


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", KERNELS)
def test_packed_equals_separate_bit_for_bit(backend, dtype):
    qkv = normal(2, 37, 3, 2, 72, dtype=dtype)
    names = dict(zip("qkv", qkv.unbind(2), strict=True))
    with use_backend(backend):
        packed = run(attention, {"q": qkv}, ("q",), dtype)
        separate = run(attention, names, tuple(names), dtype)
        copied = run(attention, {k: v.contiguous() for k, v in names.items()}, tuple(names), dtype)
    for other in (separate, copied):
        assert torch.equal(packed["out0"], other["out0"])
        assert torch.equal(packed["dq"], torch.stack([other[f"d{name}"] for name in names], 2))


def test_views_reach_the_kernel_uncopied(monkeypatch):
    seen, backend = [], Op._backend

    def spy(self, name):
        pair = backend(self, name)
        return type(pair)(lambda *a: (seen.append(a), pair.forward(*a))[1], pair.backward, pair.why_not)

    monkeypatch.setattr(Op, "_backend", spy)
    wide = normal(2, 7, 4, 2, 64)
    with use_backend("cpu"):
        attention(wide[:, :, 1:])
        attention(*wide.unbind(2)[1:])
    for given, wanted in zip(seen, ([wide[:, :, 1:]], wide.unbind(2)[1:]), strict=True):
        for tensor, view in zip(given, wanted, strict=False):
            assert tensor.data_ptr() == view.data_ptr() and tensor.stride() == view.stride()


@pytest.mark.parametrize("kind", ["random", "logits to 1e4"])
@pytest.mark.parametrize("backend", KERNELS)
def test_lse(backend, kind):
    qkv = hard(kind, 63, torch.float32)
    scale = 72**-0.5

    def logsumexp(qkv):
        q, k, _ = qkv.unbind(2)
        return torch.logsumexp(torch.einsum("nqhd,nkhd->nhqk", q, k) * scale, -1)

    with poisoned():
        _, lse = OP.forward(qkv, None, None, None, None, scale, 0, 0.0, backend)
    assert lse.dtype == torch.float32 and lse.is_contiguous()
    _, _, ratio = compare(lse, logsumexp(qkv), logsumexp(qkv.double()), torch.float32)
    assert ratio <= 1.0


@pytest.mark.parametrize("backend", ("reference", *KERNELS))
def test_autocast(backend):
    """As scaled_dot_product_attention: inputs are cast, so mixed dtypes are legal; gradients are cast back."""
    given = {name: normal(2, 5, 2, 64, seed=i) for i, name in enumerate("qkv")}
    given["q"] = given["q"].bfloat16()

    def inside(**tensors):
        with torch.autocast("cpu", torch.bfloat16):
            return attention(**tensors)

    with use_backend(backend):
        got = run(inside, given, tuple(given), torch.bfloat16)
        wanted = run(attention, {k: v.bfloat16() for k, v in given.items()}, tuple(given), torch.bfloat16)
    assert got["out0"].dtype == torch.bfloat16
    assert [got[f"d{k}"].dtype for k in given] == [torch.bfloat16, torch.float32, torch.float32]
    for key, value in wanted.items():
        assert torch.equal(got[key], value.to(got[key].dtype)), key


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", KERNELS)
def test_a_backward_inside_autocast_is_the_same(backend, dtype):
    leaf = normal(2, 5, 3, 2, 64, dtype=dtype).requires_grad_()
    with use_backend(backend):
        out = attention(leaf)
        (wanted,) = torch.autograd.grad(out.sum(), leaf, retain_graph=True)
        with torch.autocast("cpu", torch.bfloat16):
            (got,) = torch.autograd.grad(out.sum(), leaf)
    assert torch.equal(got, wanted)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_number_of_threads_changes_no_bit(dtype):
    before, results = torch.get_num_threads(), []
    qkv = normal(2, 130, 3, 3, 72, dtype=dtype)  # two items of the forward a head
    try:
        with use_backend("cpu"):
            for threads in (1, 2, 5):
                torch.set_num_threads(threads)
                results.append(run(attention, {"q": qkv}, ("q",), dtype))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(other[k], v) for k, v in results[0].items())


@pytest.mark.parametrize("dh", [36, 136])
def test_head_widths_beyond_the_kernels(dh):
    q = normal(2, 5, 3, 2, dh)
    check("cpu", torch.float32, q=q)
    message = f"attention: backend 'triton' cannot run here: head dim {dh} is not a multiple of 8 up to 128"
    with use_backend("triton"), pytest.raises(BackendUnavailable, match=message):
        attention(q)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("backend", KERNELS)
def test_compiles_without_a_graph_break(backend, packed):
    given = {name: normal(2, t, 2, 64, seed=i) for i, (name, t) in enumerate(zip("qkv", (7, 5, 5), strict=True))}
    given = {"q": normal(2, 7, 3, 2, 64)} if packed else given
    compiled = torch.compile(attention, fullgraph=True, backend="aot_eager")
    with use_backend(backend):
        wanted, got = (run(f, given, tuple(given), torch.float32) for f in (attention, compiled))
    assert all(torch.equal(got[k], v) for k, v in wanted.items())


@pytest.mark.parametrize("backend", KERNELS)
def test_opcheck_of_separate_heads(backend):
    q, k, v = (normal(1, t, 2, 8, seed=i) for i, t in enumerate((7, 5, 5)))
    affine, rope = torch.randn(4, 8), torch.randn(2, 7, 4)
    plain = (None, None), (0.3, 0, 0.0, backend)
    prepared = (affine, rope), (0.3, 2, 1e-6, backend)
    for heads, (tensors, constants) in (((q, k, v), plain), ((q, q, q), prepared)):
        out, lse = OP.forward(*heads, *tensors, *constants)
        torch.library.opcheck(OP.backward, (torch.ones_like(out), *heads, *tensors, out, lse, *constants))
        leaves = (x.clone().requires_grad_() for x in heads)
        torch.library.opcheck(OP.forward, (*leaves, *tensors, *constants))


HEADS, QKV, ROW = torch.zeros(2, 5, 2, 64), torch.zeros(2, 5, 3, 2, 64), torch.zeros(64)


@pytest.mark.parametrize(
    "given,message",
    [
        ({"q": HEADS}, r"attention: `q` must be of shape \(N, T, 3, H, Dh\), got shape \(2, 5, 2, 64\)"),
        ({"q": torch.zeros(2, 5, 2, 2, 64)}, r"`q` must be of shape \(N, T, 3, H, Dh\), got shape \(2, 5, 2, 2, 64\)"),
        ({"q": [1.0]}, r"`q` must be a tensor, got list"),
        ({"q": torch.zeros(2, 5, 3, 2, 64).long()}, r"`q` must be floating point, got torch.int64"),
        ({"q": HEADS, "k": HEADS}, r"`v` must be a tensor when `k` is one, got None"),
        ({"q": HEADS, "v": HEADS}, r"`k` must be a tensor when `v` is one, got None"),
        ({"q": HEADS, "k": HEADS[:1], "v": HEADS}, r"`k` must be of shape \(2, Tk, 2, 64\), got shape \(1, 5, 2, 64\)"),
        ({"q": HEADS, "k": HEADS, "v": HEADS[:, :4]}, r"`v` must be of shape \(2, 5, 2, 64\), got .* \(2, 4, 2, 64\)"),
        ({"q": HEADS, "k": HEADS[..., :8], "v": HEADS}, r"`k` must be .* \(2, Tk, 2, 64\), got .* \(2, 5, 2, 8\)"),
        ({"q": HEADS, "k": HEADS[:, :0], "v": HEADS[:, :0]}, r"`k` must be of at least one token, got .* \(2, 0, 2,"),
        ({"q": HEADS, "k": HEADS.half(), "v": HEADS}, r"`k` must be torch.float32 like `q`, got torch.float16"),
        ({"q": HEADS, "k": HEADS, "v": HEADS.to("meta")}, r"`v` must be on cpu like `q`, got meta"),
        ({"q": QKV, "norm": "batch"}, r"`norm` must be 'rms', 'layer' or None, got 'batch'"),
        ({"q": QKV, "q_weight": ROW}, r"`q_weight` must be None where `norm` is None, got shape \(64,\)"),
        ({"q": QKV, "norm": "rms", "k_bias": ROW}, r"`k_bias` must be None where `norm` is 'rms', got shape"),
        ({"q": QKV, "norm": "rms", "k_weight": ROW[1:]}, r"`k_weight` must be of shape \(64,\), got shape \(63,\)"),
        ({"q": QKV, "norm": "rms", "k_weight": ROW.to("meta")}, r"`k_weight` must be on cpu like `q`, got meta"),
        ({"q": QKV, "rope": torch.zeros(2, 4, 32)}, r"`rope` must be of shape \(2, 5, 32\), got shape \(2, 4, 32\)"),
        ({"q": QKV, "rope": torch.zeros(2, 5, 32, device="meta")}, r"`rope` must be on cpu like `q`, got meta"),
        ({"q": torch.zeros(2, 5, 3, 2, 7), "rope": torch.zeros(2, 5, 3)}, r"`q` must be of an even head width .* 7"),
        (
            {"q": HEADS, "k": HEADS[:, :4], "v": HEADS[:, :4], "rope": torch.zeros(2, 5, 32)},
            r"`k` must be of 5 tokens like `q` where `rope` is given, got 4",
        ),
    ],
)
def test_wrong_arguments_are_named(given, message):
    with pytest.raises(ValueError, match=message):
        attention(**given)


def test_a_rotation_leaves_logits_a_function_of_distance():
    """What rope is for: with equal heads everywhere, the logit of two tokens depends on how far apart they are."""
    angles = torch.arange(6)[:, None] * torch.tensor([1.0, 0.1, 0.01, 0.001])
    x = normal(1, 1, 1, 8, dtype=torch.float64).expand(1, 6, 1, 8)
    turned = reference_module.rotate(x, torch.stack((angles.cos(), angles.sin())))[0, :, 0]
    logits = turned @ turned.T
    for distance in range(1, 6):
        along = logits.diagonal(distance)
        torch.testing.assert_close(along, along[:1].expand_as(along))


@pytest.mark.parametrize("norm", ["rms", "layer"])
def test_norms_are_pytorchs(norm):
    x, weight, bias = normal(2, 3, 4, 72), normal(72, seed=1), normal(72, seed=2)
    if norm == "rms":
        bias, wanted = None, F.rms_norm(x, (72,), weight, 1e-6)
    else:
        wanted = F.layer_norm(x, (72,), weight, bias, 1e-6)
    torch.testing.assert_close(reference_module.normalize(x, norm, weight, bias, 1e-6), wanted)


def test_weights_of_any_dtype_get_gradients_of_it():
    """As under autocast: float32 weights beside bfloat16 heads."""
    weight = normal(64).requires_grad_()
    with use_backend("cpu"):
        attention(normal(2, 5, 3, 2, 64, dtype=torch.bfloat16), norm="rms", q_weight=weight).sum().backward()
    assert weight.grad is not None and weight.grad.dtype == torch.float32
