# SPDX-License-Identifier: Apache-2.0
"""What is special to final_layer: where each feature goes, tokens modulated before, slices, autocast, errors."""

import pytest
import torch
import torch.nn.functional as F

from dit_fast.ops import adaln, final_layer, use_backend
from dit_fast.parity import poisoned, run

KERNELS = ("cpu", "triton")
NAMES = ("x", "shift", "scale", "weight", "bias")


def inputs(n=2, grid=(2, 3), p=2, c=4, d=24, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((n, grid[0] * grid[1], d), (n, d), (n, d), (p * p * c, d), (p * p * c,))
    tensors = {k: torch.randn(s, generator=generator).to(dtype) for k, s in zip(NAMES, shapes, strict=True)}
    return {**tensors, "grid": grid, "patch_size": p}


def in_float64(given):
    return {k: v.double() if isinstance(v, torch.Tensor) else v for k, v in given.items()}


def folded(x, shift, scale, weight, bias, grid, patch_size, eps=1e-6):
    """The third party: the norm from its definition, the layout by PyTorch's col2im."""
    p, (h, w) = patch_size, grid
    if shift is not None:
        centred = x - x.mean(-1, keepdim=True)
        xhat = centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()
        x = xhat + xhat * scale[:, None] + shift[:, None]
    y = torch.einsum("ntd,od->nto", x, weight) + bias
    columns = y.unflatten(2, (p * p, -1)).permute(0, 3, 2, 1)  # (N, C, p*p, T), the order fold takes
    return F.fold(columns.flatten(1, 2), (h * p, w * p), p, stride=p)


def check_against_fold(backend, given, tolerance=2e-5):
    names = tuple(k for k in NAMES if given[k] is not None)
    with use_backend(backend), poisoned():
        got = run(final_layer, given, names, torch.float32)
    for key, value in run(folded, in_float64(given), names, torch.float32).items():
        torch.testing.assert_close(got[key].double(), value, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("modulated", [True, False])
@pytest.mark.parametrize(
    "size", [(2, (2, 3), 2, 8), (1, (3, 1), 4, 8), (2, (1, 2), 8, 4), (3, (4, 3), 1, 3), (1, (7, 9), 3, 2)]
)
@pytest.mark.parametrize("backend", ("reference", *KERNELS))
def test_against_fold(backend, size, modulated):
    given = inputs(*size)
    check_against_fold(backend, given if modulated else {**given, "shift": None, "scale": None})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", KERNELS)
def test_every_feature_has_its_place(backend, dtype):
    """With an identity for a weight the image is the tokens laid out, and dx its gradient taken apart, exactly."""
    n, (h, w), p, c = 2, (3, 5), 2, 3
    d = p * p * c
    x = (torch.arange(n * h * w * d) % 31).view(n, h * w, d).to(dtype).requires_grad_()
    with use_backend(backend), poisoned():
        weight, bias = torch.eye(d, dtype=dtype), torch.zeros(d, dtype=dtype)
        image = final_layer(x, None, None, weight, bias, grid=(h, w), patch_size=p)
        (dx,) = torch.autograd.grad(image, x, image)
    for i in range(h * p):
        for j in range(w * p):
            first = ((i % p) * p + j % p) * c
            assert torch.equal(image[:, :, i, j], x[:, (i // p) * w + j // p, first : first + c])
    assert torch.equal(dx, x)


@pytest.mark.parametrize("backend", KERNELS)
def test_modulated_before_is_the_same_layer(backend):
    given = inputs()
    rest = {k: given[k] for k in ("weight", "bias", "grid", "patch_size")}
    with use_backend(backend):
        h = adaln(given["x"], given["shift"], given["scale"])
        before = final_layer(h, None, None, **rest)
        torch.testing.assert_close(before, final_layer(**given))


@pytest.mark.parametrize("backend", KERNELS)
def test_a_slice_of_a_longer_sequence(backend):
    """In-context conditioning: the tokens appended for it are left out, and get no gradient."""
    given = inputs(dtype=torch.bfloat16)
    longer = torch.randn(2, 8, 24, dtype=torch.bfloat16)
    longer[:, :6] = given["x"]
    longer.requires_grad_()
    with use_backend(backend):
        wanted = run(final_layer, given, NAMES, torch.bfloat16)
        image = final_layer(**{**given, "x": longer[:, :6]})
        cotangent = torch.randn(image.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        (dlonger,) = torch.autograd.grad(image, longer, cotangent.bfloat16())
    assert torch.equal(image, wanted["out0"])
    assert torch.equal(dlonger[:, :6], wanted["dx"])
    assert not dlonger[:, 6:].any()


@pytest.mark.parametrize("backend", KERNELS)
def test_sums_over_uneven_groups(backend):
    """20 pieces in 8 groups (cpu), 25 tiles in 7 splits (triton), the last of a sample incomplete."""
    check_against_fold(backend, inputs(n=5, grid=(15, 10), d=40), tolerance=1e-4)


@pytest.mark.parametrize("modulated", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_number_of_threads_changes_no_bit(dtype, modulated):
    given = inputs(n=5, grid=(15, 10), d=72, dtype=dtype)  # 20 pieces in 8 groups
    given = given if modulated else {**given, "shift": None, "scale": None}
    names = tuple(k for k in NAMES if given[k] is not None)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            with use_backend("cpu"), poisoned():
                results.append(run(final_layer, given, names, dtype))
    finally:
        torch.set_num_threads(before)
    for key, value in results[0].items():
        assert all(torch.equal(other[key], value) for other in results[1:]), key


def test_a_weight_larger_than_the_cache():
    """Panels of more than 256 KiB are swept for several tiles at a time; the last tile is incomplete."""
    given = inputs(n=2, grid=(5, 10), p=8, c=8, d=136)
    assert given["weight"].numel() * 4 > 256 << 10
    check_against_fold("cpu", given, tolerance=1e-4)


def under_autocast(**given):
    with torch.autocast("cpu", torch.bfloat16):
        return final_layer(**given)


@pytest.mark.parametrize("backend", ("reference", *KERNELS))
def test_autocast_computes_in_float32(backend):
    given = inputs()
    given["x"] = given["x"].bfloat16()
    widened = {k: v.float() if isinstance(v, torch.Tensor) else v for k, v in given.items()}
    with use_backend(backend):
        got = run(under_autocast, given, NAMES, torch.float32)
        wanted = run(final_layer, widened, NAMES, torch.float32)
    assert got["out0"].dtype == torch.float32
    for key, value in wanted.items():
        assert torch.equal(got[key], value.to(got[key].dtype)), key
    assert [got[f"d{k}"].dtype for k in NAMES] == [given[k].dtype for k in NAMES]


@pytest.mark.parametrize(
    "argument,value,message",
    [
        ("x", torch.zeros(2, 24), r"final_layer: `x` must be of shape \(N, T, D\), got shape \(2, 24\)"),
        ("shift", torch.zeros(3, 24), r"`shift` must be of shape \(2, 24\), got shape \(3, 24\)"),
        ("scale", torch.zeros(2, 1, 24), r"`scale` must be of shape \(2, 24\), got shape \(2, 1, 24\)"),
        ("shift", None, r"`shift` must be a tensor, or both `shift` and `scale` None, got None"),
        ("scale", None, r"`scale` must be a tensor, or both `shift` and `scale` None, got None"),
        ("scale", torch.zeros(2, 24).half(), r"`scale` must be torch.float32 like `x`, got torch.float16"),
        ("weight", torch.zeros(16, 23), r"`weight` must be of shape \(p\*p\*C, 24\), got shape \(16, 23\)"),
        ("bias", torch.zeros(15), r"`bias` must be of shape \(16,\), got shape \(15,\)"),
        ("bias", torch.zeros(16, device="meta"), r"`bias` must be on cpu like `x`, got meta"),
        ("grid", (2, 4), r"`grid` must be \(h, w\) with h \* w = 6 tokens of `x`, got \(2, 4\)"),
        ("grid", (-2, -3), r"`grid` must be \(h, w\) with h \* w = 6 tokens of `x`, got \(-2, -3\)"),
        ("patch_size", 3, r"`patch_size` must be p >= 1 with p\*p a divisor of the 16 rows of `weight`, got 3"),
        ("patch_size", 0, r"`patch_size` must be p >= 1 with p\*p a divisor of the 16 rows of `weight`, got 0"),
    ],
)
def test_wrong_arguments_are_named(argument, value, message):
    with pytest.raises(ValueError, match=message):
        final_layer(**{**inputs(), argument: value})


def test_the_native_kernel_guards_its_direct_callers():
    x, shift, scale, weight, bias = (inputs()[k] for k in NAMES)
    for arguments, message in (
        ((x[0], shift, scale, weight, bias, 2, 3, 2), "`x` must be"),
        ((x, shift, None, weight, bias, 2, 3, 2), "`shift` and `scale` must both be given or both None"),
        ((x, shift, scale, weight, bias, 2, 2, 2), "`height` \\* `width` must be 6, got 2 and 2"),
        ((x, shift, scale, weight, bias, 2, 3, 3), "`patch` squared must divide 16, got 3"),
        ((x, shift, scale[:1], weight, bias, 2, 3, 2), "`scale` must have size 2"),
        ((x, shift, scale, weight.half(), bias, 2, 3, 2), "`weight` has the wrong dtype"),
    ):
        with pytest.raises(RuntimeError, match=message):
            torch.ops.dit_fast_native.final_layer(*arguments, 1e-6)
