# SPDX-License-Identifier: Apache-2.0
"""What is special to patch_embed: where pixels go, gradients only where needed, any patch size, autocast, errors."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from dit_fast.ops import patch_embed, use_backend
from dit_fast.ops.patch_embed.autograd import OP
from dit_fast.parity import poisoned, run

KERNELS = ("cpu", "triton")
NAMES = ("x", "weight", "bias", "pos")


def inputs(n=2, c=3, h=4, w=6, p=2, d=24, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((n, c, h, w), (d, c, p, p), (d,), ((h // p) * (w // p), d))
    return {k: torch.randn(s, generator=generator).to(dtype) for k, s in zip(NAMES, shapes, strict=True)}


def unfolded(x, weight, bias, pos):
    """The third party: PyTorch's im2col."""
    p = weight.shape[-1]
    patches = F.unfold(x, p, stride=p).transpose(1, 2)  # (N, T, C*p*p)
    return patches @ weight.flatten(1).T + bias + pos


@pytest.mark.parametrize(
    "size", [(2, 3, 4, 6, 2), (1, 4, 16, 8, 8), (3, 16, 4, 12, 4), (2, 1, 3, 2, 1), (1, 5, 6, 9, 3)]
)
@pytest.mark.parametrize("backend", ("reference", *KERNELS))
def test_against_unfold(backend, size):
    given = inputs(*size)
    with use_backend(backend), poisoned():
        got = run(patch_embed, given, NAMES, torch.float32)
    wanted = run(unfolded, {k: v.double() for k, v in given.items()}, NAMES, torch.float32)
    for key, value in wanted.items():
        torch.testing.assert_close(got[key].double(), value, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", KERNELS)
def test_every_pixel_has_its_place(backend, dtype):
    """With a weight of one-hot rows the tokens are the patches and dx is dout put back, exactly."""
    n, c, h, w, p = 2, 3, 4, 10, 2
    x = (torch.arange(n * c * h * w) % 31).view(n, c, h, w).to(dtype).requires_grad_()
    weight = torch.eye(c * p * p, dtype=dtype).view(-1, c, p, p)
    with use_backend(backend), poisoned():
        out = patch_embed(x, weight, None, torch.zeros((h // p) * (w // p), c * p * p, dtype=dtype))
        (dx,) = torch.autograd.grad(out, x, out)
    for i, j in itertools.product(range(h // p), range(w // p)):
        patch = x[:, :, i * p : (i + 1) * p, j * p : (j + 1) * p].flatten(1)
        assert torch.equal(out[:, i * (w // p) + j], patch)
    assert torch.equal(dx, x)


@pytest.mark.parametrize("backend", KERNELS)
def test_only_needed_gradients_are_computed(backend, monkeypatch):
    sizes, backward = [], OP.backward

    def spy(*arguments):
        gradients = backward(*arguments)
        sizes.append([g.numel() for g in gradients])
        return gradients

    monkeypatch.setattr(OP, "backward", spy)
    given = inputs()
    with use_backend(backend), poisoned():
        everything = run(patch_embed, given, NAMES, torch.float32)
        for mask in itertools.product((False, True), repeat=4):
            names = tuple(name for name, wanted in zip(NAMES, mask, strict=True) if wanted)
            if not names:
                continue
            leaves = {k: v.clone().requires_grad_(k in names) for k, v in given.items()}
            got = run(patch_embed, leaves, names, torch.float32)
            assert sizes[-1] == [given[k].numel() * (k in names) for k in NAMES]
            assert all(torch.equal(got[f"d{name}"], everything[f"d{name}"]) for name in names)


@pytest.mark.parametrize("backend", ("reference", *KERNELS))
def test_no_bias_is_a_zero_bias(backend):
    given = inputs()
    with use_backend(backend):
        zero = run(patch_embed, {**given, "bias": torch.zeros(24)}, ("x", "weight", "pos"), torch.float32)
        none = run(patch_embed, {**given, "bias": None}, ("x", "weight", "pos"), torch.float32)
    for key, value in zero.items():
        assert torch.equal(none[key], value), key


@pytest.mark.parametrize("backend", KERNELS)
def test_sums_over_uneven_chunks(backend):
    """855 tokens: 7 chunks of 128 (cpu) or splits of 2 tiles of 64 (triton), the last incomplete."""
    given = inputs(n=5, c=4, h=18, w=38, d=40)
    with use_backend(backend), poisoned():
        got = run(patch_embed, given, NAMES, torch.float32)
    for key, value in run(unfolded, {k: v.double() for k, v in given.items()}, NAMES, torch.float32).items():
        torch.testing.assert_close(got[key].double(), value, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_number_of_threads_changes_no_bit(dtype):
    given = inputs(n=5, c=4, h=32, w=24, d=72, dtype=dtype)  # 960 tokens: 8 chunks
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            with use_backend("cpu"), poisoned():
                results.append(run(patch_embed, given, NAMES, dtype))
    finally:
        torch.set_num_threads(before)
    for key, value in results[0].items():
        assert all(torch.equal(other[key], value) for other in results[1:]), key


@pytest.mark.parametrize("c,p,d", [(4, 8, 320), (12, 8, 130)])
def test_a_weight_larger_than_the_cache(c, p, d):
    """Panels of more than 256 KiB are swept for several tiles at a time."""
    given = inputs(n=3, c=c, h=3 * p, w=5 * p, p=p, d=d)  # 45 tokens: two sweeps of 24, the last tile incomplete
    assert given["weight"].numel() * 4 > 256 << 10
    with use_backend("cpu"), poisoned():
        got = run(patch_embed, given, NAMES, torch.float32)
    wanted = run(unfolded, {k: v.double() for k, v in given.items()}, NAMES, torch.float32)
    for key, value in wanted.items():
        torch.testing.assert_close(got[key].double(), value, rtol=1e-4, atol=1e-4)


def under_autocast(**given):
    with torch.autocast("cpu", torch.bfloat16):
        return patch_embed(**given)


@pytest.mark.parametrize("backend", ("reference", *KERNELS))
def test_autocast_computes_in_float32(backend):
    given = inputs()
    given["x"] = given["x"].bfloat16()
    with use_backend(backend):
        got = run(under_autocast, given, NAMES, torch.float32)
        wanted = run(patch_embed, {k: v.float() for k, v in given.items()}, NAMES, torch.float32)
    assert got["out0"].dtype == torch.float32
    for key, value in wanted.items():
        assert torch.equal(got[key], value.to(got[key].dtype)), key
    assert [got[f"d{k}"].dtype for k in NAMES] == [given[k].dtype for k in NAMES]


@pytest.mark.parametrize(
    "argument,value,message",
    [
        ("x", torch.zeros(2, 3, 4), r"patch_embed: `x` must be of shape \(N, C, H, W\), got shape \(2, 3, 4\)"),
        ("x", torch.zeros(2, 3, 5, 6), r"`x` must be of height and width in positive multiples of p = 2, got .*5, 6"),
        ("x", torch.zeros(2, 3, 0, 6), r"`x` must be of height and width in positive multiples of p = 2, got .*0, 6"),
        ("x", torch.zeros(2, 3, 4, 6).long(), r"`x` must be floating point, got torch.int64"),
        ("weight", torch.zeros(24, 4, 2, 2), r"`weight` must be of shape \(D, 3, p, p\), got shape \(24, 4, 2, 2\)"),
        ("weight", torch.zeros(24, 3, 2, 1), r"`weight` must be .* square patches, got shape \(24, 3, 2, 1\)"),
        ("weight", torch.zeros(24, 3, 2, 2).half(), r"`weight` must be torch.float32 like `x`, got torch.float16"),
        ("bias", torch.zeros(23), r"`bias` must be of shape \(24,\), got shape \(23,\)"),
        ("bias", torch.zeros(24, device="meta"), r"`bias` must be on cpu like `x`, got meta"),
        ("pos", torch.zeros(1, 6, 24), r"`pos` must be of shape \(6, 24\), got shape \(1, 6, 24\)"),
        ("pos", torch.zeros(7, 24), r"`pos` must be of shape \(6, 24\), got shape \(7, 24\)"),
        ("pos", None, r"`pos` must be a tensor, got NoneType"),
    ],
)
def test_wrong_arguments_are_named(argument, value, message):
    with pytest.raises(ValueError, match=message):
        patch_embed(**{**inputs(), argument: value})


def test_the_native_kernel_guards_its_direct_callers():
    x, weight, bias, pos = inputs().values()
    native = torch.ops.dit_fast_native
    for arguments, message in (
        ((x[0], weight, bias, pos), "`x` must be"),
        ((x[..., :5], weight, bias, pos), "`x` must have a height and width in positive multiples of 2"),
        ((x, weight, bias[1:], pos), "`bias` must have size 24"),
        ((x, weight.bfloat16(), bias, pos), "`weight` has the wrong dtype"),
        ((x.transpose(2, 3), weight, bias, pos), "`x` must be contiguous"),
    ):
        with pytest.raises(RuntimeError, match=message):
            native.patch_embed(*arguments)
    with pytest.raises(RuntimeError, match="`needed` must have 4 elements, got 3"):
        native.patch_embed_backward(torch.zeros(2, 6, 24), x, weight, [True] * 3)
