# SPDX-License-Identifier: Apache-2.0
"""What only a GPU can tell of a compiled model: `mode="reduce-overhead"` records it in CUDA graphs and replays them."""

import copy

import pytest
import torch
from torch._dynamo.utils import counters

from dit_fast import env
from dit_fast.ops import use_backend
from dit_fast.parity import compare, no_tf32
from tests.models.live import batch, live_model

pytestmark = [
    pytest.mark.skipif(not torch.cuda.device_count(), reason="there is no GPU here: `make gpu` on one"),
    pytest.mark.skipif(env.triton_interpret(), reason="torch.compile's own Triton kernels would be interpreted"),
]

RUNS = 5
"""Two warm-ups, the capture, two replays."""


def result(model, call, inputs):
    """Output and every parameter's gradient."""
    out = call(*inputs)
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [out.detach().clone(), *(g.clone() for g in torch.autograd.grad(out.square().mean(), parameters))]


def test_replays_follow_new_inputs_forward_and_backward():
    torch._dynamo.reset()
    counters.clear()
    model = live_model(depth=2, class_dropout_prob=0.0).cuda().train()
    exact_model = copy.deepcopy(model).double()
    compiled = torch.compile(model, fullgraph=True, mode="reduce-overhead")
    for seed in range(RUNS):
        x, *rest = (tensor.cuda() for tensor in batch(model, seed=seed))
        torch.compiler.cudagraph_mark_step_begin()
        with no_tf32():
            got = result(model, compiled, (x, *rest))
            with use_backend("reference"):
                eager = result(model, model, (x, *rest))
                exact = result(exact_model, exact_model, (x.double(), *rest))
        for a, b, c in zip(got, eager, exact, strict=True):
            assert compare(a, b, c, torch.float32)[2] <= 1
    assert not counters["inductor"]["cudagraph_skips"]
