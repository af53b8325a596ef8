# SPDX-License-Identifier: Apache-2.0
"""What is special to patch_embed's CUDA kernels: long patches, walks over samples, sums of many parts, no pixels."""

import pytest
import torch

from dit_fast.ops import patch_embed, use_backend
from dit_fast.ops._core import Case
from dit_fast.ops.patch_embed.autograd import OP
from dit_fast.ops.patch_embed.spec import SPEC
from dit_fast.parity import check_case, poisoned
from tests.host_exec.backend import NAME

CASES = {
    "K = 1024, in 16 or 32 steps": {"N": 2, "C": 16, "H": 24, "W": 16, "P": 8, "D": 136},
    "odd K = 225, scalar weight": {"N": 3, "C": 9, "H": 10, "W": 15, "P": 5, "D": 40},
    "6 chunks of dweight": {"N": 5, "C": 4, "H": 26, "W": 24, "P": 2, "D": 132},
    "many samples in dpos": {"N": 37, "C": 4, "H": 6, "W": 4, "P": 2, "D": 24},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("dims", CASES.values(), ids=CASES)
def test_forward_and_gradients(dims, dtype):
    for row in check_case(SPEC, NAME, dtype, Case("", {**dims, "B": 1})):
        assert row.passed, row


@pytest.mark.parametrize("height,width", [(32, 32), (25, 40)])
def test_a_block_walks_tiles_of_many_samples(height, width):
    """More tiles of 64 tokens than blocks: tiles of a walk are 16 (or, where 64 does not divide T, 125) apart."""
    n = 15
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, 1, height, width, generator=generator)
    weight, bias, pos = (torch.randn(s, generator=generator) for s in ((8, 1, 1, 1), (8,), (height * width, 8)))
    with use_backend(NAME), poisoned():
        out = patch_embed(x, weight, bias, pos)
    wanted = x.double().flatten(1)[:, :, None] * weight.double().flatten() + bias.double() + pos.double()
    torch.testing.assert_close(out.double(), wanted, rtol=1e-6, atol=1e-6)


def test_no_width_and_no_channels():
    x, pos = torch.randn(2, 0, 4, 6), torch.randn(6, 16)
    with use_backend(NAME), poisoned():
        out = patch_embed(x, torch.empty(16, 0, 2, 2), None, pos)
        assert torch.equal(out, pos.expand(2, -1, -1))
        assert patch_embed(torch.randn(2, 4, 4, 6), torch.empty(0, 4, 2, 2), None, torch.empty(6, 0)).shape == (2, 6, 0)
        x = torch.randn(2, 4, 4, 6, requires_grad=True)
        out = patch_embed(x, torch.empty(0, 4, 2, 2), None, torch.empty(6, 0))
        (dx,) = torch.autograd.grad(out, x, torch.empty_like(out))
    assert torch.equal(dx, torch.zeros_like(x))


def test_more_patches_than_32_bits_number_are_refused():
    x, weight = torch.empty(2**25, 4, 16, 16, device="meta"), torch.empty(8, 4, 2, 2, device="meta")
    assert OP.limits("cuda", (x, weight)) == "there may be at most 2147483583 patches, got 2147483648"
    assert OP.limits("cuda", (x[:-1], weight)) is not None and OP.limits("cuda", (x[:-2], weight)) is None
    assert OP.limits("triton", (x, weight)) is None
