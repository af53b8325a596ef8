# SPDX-License-Identifier: Apache-2.0
"""What is special to attention's Triton kernels: their tiles, the unit of strides, offsets, memory they may touch."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from dit_fast.ops import use_backend
from dit_fast.ops._core import OPS
from dit_fast.ops.attention import attention
from dit_fast.ops.attention.autograd import NORMS
from dit_fast.ops.attention.reference import prepare as reference_prepare
from dit_fast.parity import compare, poisoned, run

from .test_attention import check, hard, normal

ROOT = Path(__file__).parents[2]
WIDTHS = range(8, 136, 8)


def modules():
    OPS["attention"]._backend("triton")  # imports them with the interpreter made ready
    from dit_fast.ops.attention import heads, triton_kernel, triton_prepare

    return triton_kernel, triton_prepare, heads


def test_no_load_or_store_beyond_a_tensor():
    child = [sys.executable, "-m", "tests.ops.guarded_attention"]
    done = subprocess.run(child, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == "stayed within\n", done.stderr[-3000:]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_blocks_cover_every_head_width_without_waste(dtype):
    kernel, _, _ = modules()
    for dh in WIDTHS:
        for name in kernel.HALF_TILES:
            tile = kernel._tile(name, torch.empty(1, 1, 1, dh, dtype=dtype))
            blocks = [tile[b] for b in ("D0", "D1") if tile[b]]
            assert tile["DH"] == dh <= sum(blocks) and all(b >= 16 and b & (b - 1) == 0 for b in blocks), tile
            assert sum(blocks) < 2 * dh or dh < 16, tile
            assert blocks == [min(b, 64) for b in blocks] or dtype != torch.float32, tile
    assert kernel.split(72) == {"DH": 72, "D0": 64, "D1": 16} and kernel.split(128)["D1"] == 0


def test_strides_come_in_units_of_eight_where_they_can():
    _, _, heads = modules()
    q, k = torch.empty(2, 5, 3, 4, 72).unbind(2)[:2]
    assert heads.units(q, k) == (8, [540, 108, 9] * 2)
    assert heads.units(q, torch.empty(2, 5, 4, 73)[..., :72]) == (1, [4320, 864, 72, 1460, 292, 73])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_strides_of_no_unit_give_the_same_bits(dtype):
    """Heads 9 elements apart, of 8."""
    qkv = normal(1, 70, 3, 2, 8, dtype=dtype)
    wide = torch.empty(1, 70, 3, 2, 9, dtype=dtype)[..., :8].copy_(qkv)
    rope = torch.stack((torch.ones(70, 4).cos(), torch.ones(70, 4).sin()))
    with use_backend("triton"), poisoned():
        wanted, got = (run(attention, {"q": q, "norm": "rms", "rope": rope}, ("q",), dtype) for q in (qkv, wide))
    for key, value in wanted.items():
        assert torch.equal(got[key], value), key


def near_ties(t, dtype):
    """Packed qkv (2, t, 3, 1, 24) with logits to 1e4 and keys in pairs whose logits differ by about 1."""
    qkv = normal(2, t, 3, 1, 24, dtype=torch.float64)
    qkv[:, :, :2] *= 50
    qkv[:, 1::2, 1] = qkv[:, : t - 1 : 2, 1] + 0.02 * qkv[:, 1::2, 2]
    return qkv.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["near ties", "identical rows", "one-hot"])
@pytest.mark.parametrize("tokens", [22, 67])
def test_hard_logits_in_one_tile_and_in_several(tokens, kind, dtype):
    """In several, softmax is rescaled between them; of more keys than FEW_KEYS, delta comes from `out` in bfloat16."""
    kernel, _, _ = modules()
    assert kernel.FEW_KEYS < 67
    check("triton", dtype, q=near_ties(tokens, dtype) if kind == "near ties" else hard(kind, tokens, dtype, 1, 24))


def test_few_keys_of_nearly_equal_values():
    """dP - delta cancels: a delta from `out` rounded to bfloat16 would leave its rounding in dq and dk."""
    q, k, v = (normal(1, t, 1, 8, dtype=torch.bfloat16, seed=i) for i, t in enumerate((9, 2, 2)))
    check("triton", torch.bfloat16, q=q, k=k, v=8 + v)


@pytest.mark.parametrize("norm", ["rms", "layer"])
def test_weights_of_long_samples(norm):
    """A sample's rows are more than one program's, and end within a block: 300 of 256, of 16. Twice the same bits."""
    _, prepare, _ = modules()
    shape, number = (2, 100, 3, 8), NORMS[norm]
    x, dy, affine = normal(*shape), normal(*shape, seed=1), 1 + 0.3 * normal(2, 8, seed=2)
    turns = normal(100, 4, seed=3)
    rope = torch.stack((turns.cos(), turns.sin()))

    def gradients(dtype):
        leaf, rows = x.to(dtype).requires_grad_(), affine.to(dtype).requires_grad_()
        y = reference_prepare(leaf, norm, rows[0], rows[1], 1e-6, rope.to(dtype))
        return torch.autograd.grad(y, (leaf, rows), dy.to(dtype))

    with poisoned():
        runs = [(dx := dy.clone(), prepare.prepare_backward(x, dx, affine, rope, number, 1e-6)) for _ in range(2)]
    for got, again, eager, exact in zip(*runs, gradients(torch.float32), gradients(torch.float64), strict=True):
        assert torch.equal(got, again)
        assert compare(got, eager, exact, torch.float32)[2] <= 1.0


def test_samples_far_apart():
    """Offsets beyond 2^31 elements: samples of views whose strides pass it, in memory that is reserved, not used."""
    _, prepare, _ = modules()
    far = 2**31 + 8
    x = torch.empty(far + 64, dtype=torch.bfloat16).as_strided((2, 1, 1, 8), (far, 8, 8, 1))
    x.copy_(normal(2, 1, 1, 8, dtype=torch.bfloat16))
    with use_backend("triton"):
        out = attention(x, x, x)
    assert torch.equal(out[:, 0], x[:, 0, 0])
    assert torch.equal(prepare.prepare(x, None, None, 0, 0.0), x)
    dy = x.clone(memory_format=torch.preserve_format)
    prepare.prepare_backward(x, dy, None, None, 0, 0.0)
    assert torch.equal(dy, x)
