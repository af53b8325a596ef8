# SPDX-License-Identifier: Apache-2.0
"""FLOPs: the paper's table, its count, and PyTorch's counter through our operators."""

import subprocess
import sys

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from dit_fast.bench.flops import DESIGN_GFLOPS, PAPER_GFLOPS, count, flops
from dit_fast.models import DiT, DiT_models, count_macs
from dit_fast.ops import specs, use_backend
from dit_fast.ops._core import Case

SPECS = {name: spec for name, spec in specs().items() if spec.op.backward is not None}
ROWS = [(name, "adaln_zero", gflops) for name, gflops in PAPER_GFLOPS.items()]
ROWS += [("DiT-XL/2", design, gflops) for design, gflops in DESIGN_GFLOPS.items() if design != "adaln_zero"]


@pytest.mark.parametrize("name, conditioning, paper", ROWS)
def test_the_papers_table(name, conditioning, paper):
    found = count(name, conditioning, paper)
    assert found.counted == pytest.approx(paper, rel=0.01)
    assert found.pytorch == found.counted


def test_a_whole_model_counts_as_its_first_blocks_say():
    with torch.device("meta"):
        model = DiT_models["DiT-S/8"]().eval()
        inputs = torch.empty(1, 4, 32, 32), torch.empty(1), torch.empty(1, dtype=torch.int64)
    assert flops(model, *inputs) == 2e9 * count("DiT-S/8", "adaln_zero", 0.36).pytorch


def fake_flops(case: Case, spec) -> tuple[int, int]:
    """FLOPs of the operator and of its backward, on fake tensors: the formulas alone, no kernel."""
    with FakeTensorMode() as mode, use_backend("cpu"):
        inputs = {
            name: mode.from_tensor(value).requires_grad_(name in spec.gradients) if torch.is_tensor(value) else value
            for name, value in spec.make(case, torch.float32).items()
        }
        with FlopCounterMode(display=False) as forward:
            out = spec.function(**inputs)
        outs = out if isinstance(out, tuple) else (out,)
        with FlopCounterMode(display=False) as backward:
            torch.autograd.backward(outs, [torch.ones_like(o) for o in outs])
    return forward.get_total_flops(), backward.get_total_flops()


@pytest.mark.parametrize("op", [op for op in SPECS if SPECS[op].cost(SPECS[op].cases[0].dims, 4).forward_flops])
def test_each_op_is_counted_as_its_spec_says(op):
    spec = SPECS[op]
    for case in [case for case in spec.cases if case.layout == "contiguous"]:
        cost = spec.cost(case.dims, 4)
        assert fake_flops(case, spec) == (cost.forward_flops, cost.backward_flops), case.name


@pytest.mark.parametrize("conditioning", [*DESIGN_GFLOPS])
def test_training_is_three_forwards_and_the_logits_again(conditioning):
    with FakeTensorMode(), use_backend("cpu"):
        model = DiT(8, 2, 4, 144, 2, 2, num_classes=10, conditioning=conditioning)
        x, t, y = torch.randn(1, 4, 8, 12), torch.randn(1), torch.tensor([1])
        forward = flops(model, x, t, y)
        training = flops(model, x, t, y, backward=True)
    assert forward == 2 * count_macs(model, 8, 12)
    tokens = 24 + 2 * (conditioning == "in_context")
    again = 2 * tokens * tokens + (2 * 24 * 2 if conditioning == "cross_attention" else 0)
    no_gradient = 2 * (256 + 24 * 16) * 144  # of the timestep's features and the image
    assert training == 3 * forward + 2 * again * 144 - no_gradient


def test_the_counter_is_not_loaded_by_us_and_knows_the_ops_when_it_is():
    """It takes seconds to import; in another process, since this one has it."""
    script = """
import sys
import dit_fast.ops, torch
assert "torch.utils.flop_counter" not in sys.modules
from torch.utils.flop_counter import flop_registry
names = ("attention", "linear_gelu", "patch_embed", "final_layer")
for name in names:
    assert getattr(torch.ops.dit_fast, name) in flop_registry, name
    assert getattr(torch.ops.dit_fast, name + "_backward") in flop_registry, name
"""
    subprocess.run([sys.executable, "-c", script], check=True)
