# SPDX-License-Identifier: Apache-2.0
"""Patched models under torch.compile and torch.export: one graph, with the fused ops in it."""

import copy

import pytest
import torch
from torch import nn

import dit_fast
from dit_fast import ops

from .lookalikes import Block, LightningBlock, Mlp, Rope, batch, dit_like, live

OPS = {"adaln", "attention", "gated_residual", "gated_residual_adaln", "linear_gelu", "patch_embed"}


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    with ops.use_backend("cpu"):  # `auto` may find PyTorch's attention faster here
        yield


def captured(graphs):
    """A backend that keeps the graphs and runs them as they are."""

    def backend(graph, example_inputs):
        graphs.append(graph)
        return graph

    return backend


def fused_in(graph):
    return {n.target._opname for n in graph.graph.nodes if str(n.target).startswith("dit_fast.")} - {"default"}


def patched_and_not(**options):
    unpatched = dit_like(**options)
    patched = copy.deepcopy(unpatched)
    dit_fast.patch(patched)
    return patched, unpatched


def test_one_graph_whatever_the_batch():
    patched, unpatched = patched_and_not(depth=1)
    graphs = []
    compiled = torch.compile(patched, fullgraph=True, dynamic=True, backend=captured(graphs))
    for n in (2, 3, 5):
        assert torch.allclose(compiled(*batch(n)), unpatched(*batch(n)), rtol=1e-3, atol=1e-4)
    assert len(graphs) == 1
    assert fused_in(graphs[0]) == OPS


KINDS = {
    "in training, dropout": (lambda: Block(48, mlp=Mlp(48, 96, drop=0.1), attn_drop=0.1).train(), False, "attention"),
    "rope, no shifts": (lambda: LightningBlock(48, qk_norm=nn.RMSNorm, shifts=False), True, "linear_gelu"),
}


@pytest.mark.parametrize("name", KINDS)
def test_no_graph_breaks(name):
    make, rope, absent = KINDS[name]
    block = live(make()).train("training" in name)
    dit_fast.patch(block)
    args = (torch.randn(2, 5, 48), torch.randn(2, 48), *[Rope(24, 5)] * rope)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        explained = torch._dynamo.explain(block)(*args)
    assert explained.graph_break_count == 0 and explained.graph_count == 1, explained.break_reasons
    assert fused_in(explained.graphs[0]) == OPS - {"patch_embed", absent}


def test_a_hooked_part_is_in_the_graph_too():
    unpatched = live(Block(48))
    patched = copy.deepcopy(unpatched)
    dit_fast.patch(patched)
    for block in (patched, unpatched):
        block.norm1.register_forward_hook(lambda module, args, out: out * 2)
        block.mlp.act.register_forward_pre_hook(lambda module, args: (args[0] - 1,))
    graphs, args = [], (torch.randn(2, 5, 48), torch.randn(2, 48))
    compiled = torch.compile(patched, fullgraph=True, backend=captured(graphs))
    assert torch.allclose(compiled(*args), unpatched(*args), rtol=1e-3, atol=1e-4)
    assert len(graphs) == 1 and fused_in(graphs[0]) == {"attention", "gated_residual", "gated_residual_adaln"}


def test_gradients_through_aot_autograd():
    patched, unpatched = patched_and_not(depth=1)
    torch.compile(patched, fullgraph=True, backend="aot_eager")(*batch()).square().mean().backward()
    unpatched(*batch()).square().mean().backward()
    for (name, p), q in zip(patched.named_parameters(), unpatched.parameters(), strict=True):
        if p.requires_grad:
            assert torch.allclose(p.grad, q.grad, rtol=1e-3, atol=1e-5), name


def test_patching_what_is_compiled_already():
    model = dit_like(depth=1)
    graphs = []
    compiled = torch.compile(model, backend=captured(graphs))
    before = compiled(*batch())
    assert len(dit_fast.patch(compiled).replaced) == 5
    assert torch.allclose(compiled(*batch()), before, rtol=1e-3, atol=1e-4)
    assert [fused_in(g) for g in graphs] == [set(), OPS]


@pytest.mark.parametrize("strict", (True, False))
def test_export(strict):
    patched, unpatched = patched_and_not(depth=1)
    shapes = [{0: torch.export.Dim("n", min=2)}] * 3
    program = torch.export.export(patched, batch(), strict=strict, dynamic_shapes=tuple(shapes))
    assert fused_in(program.graph_module) == OPS
    assert torch.allclose(program.module()(*batch(5)), unpatched(*batch(5)), rtol=1e-3, atol=1e-4)
