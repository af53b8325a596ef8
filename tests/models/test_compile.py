# SPDX-License-Identifier: Apache-2.0
"""One graph serves every batch and size: graphs and breaks are counted, not assumed."""

import warnings

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from dit_fast.nn import sincos_2d

from .live import batch, live_model

SIZES = [(3, 8, 8), (2, 4, 12), (4, 8, 8)]
"""The model's own size (8 x 8), another, its own again."""

UNEQUAL = (7, 6, 10)
"""With `dynamic=True`, PyTorch takes dimensions that are equal in the first call for equal ever after."""


@pytest.fixture(autouse=True)
def _fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def marked(inputs):
    """The batch of every input and the image's height and width, marked as free."""
    x, t, y = inputs
    for dim in (0, 2, 3):
        torch._dynamo.mark_dynamic(x, dim)
    for tensor in (t, y):
        torch._dynamo.mark_dynamic(tensor, 0)
    return inputs


def test_there_is_no_graph_break():
    """Of the other designs, tests/models/test_parity.py: fullgraph=True forbids breaks."""
    model = live_model(depth=1)
    found = torch._dynamo.explain(model)(*batch(model))
    assert (found.graph_count, found.graph_break_count) == (1, 0), found.break_reasons


@pytest.mark.parametrize("how,sizes", [("dynamic", [UNEQUAL, SIZES[0]]), ("marked", SIZES)])
@torch.no_grad()
def test_no_size_is_compiled_for_again(how, sizes):
    model = live_model(depth=1)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, fullgraph=True, dynamic=True if how == "dynamic" else None, backend=counter)
    compiles = []
    for size in sizes:
        inputs = batch(model, *size)
        torch.testing.assert_close(compiled(*(marked(inputs) if how == "marked" else inputs)), model(*inputs))
        compiles.append(counter.frame_count)
    assert compiles[-1] == compiles[0]  # the first may be restarted: with `dynamic=True` numbers are symbols at first


def test_one_graph_is_compiled_for_training_too():
    model = live_model(depth=1, class_dropout_prob=0.0).train()
    model.enable_gradient_checkpointing()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    parameters = [p for p in model.parameters() if p.requires_grad]
    for size in SIZES[:2]:
        inputs = marked(batch(model, *size))
        got = torch.autograd.grad(compiled(*inputs).square().sum(), parameters)
        for a, b in zip(got, torch.autograd.grad(model(*inputs).square().sum(), parameters), strict=True):
            torch.testing.assert_close(a, b)
    assert counter.frame_count == 1


@pytest.mark.parametrize("grid", [(2, 3), (4, 1)])
def test_the_operator_of_positions(grid):
    own = torch.randn(6, 8)
    torch.library.opcheck(torch.ops.dit_fast.positions.default, (own, 2, 3, *grid))
    wanted = own if grid == (2, 3) else sincos_2d(4, 1, 8).float()
    assert torch.equal(torch.ops.dit_fast.positions(own, 2, 3, *grid), wanted)


@torch.no_grad()
def test_the_graph_takes_positions_from_the_model_as_it_is():
    """Its own size reads `pos_embed`, whatever was loaded there; other sizes are computed."""
    model = live_model(depth=1)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    first = compiled(*batch(model))
    model.pos_embed.neg_()
    changed = compiled(*batch(model))
    torch.testing.assert_close(changed, model(*batch(model)))
    assert not torch.allclose(changed, first, atol=1e-3)


def test_positions_that_are_trained_cannot_be_compiled_silently():
    model = live_model(depth=1)
    model.pos_embed.requires_grad_(True)
    with pytest.raises(Exception, match="no autograd formula"), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # PyTorch's own, where the error came from
        torch.compile(model, backend="aot_eager")(*batch(model)).sum().backward()


@torch.no_grad()
def test_exports_with_any_batch():
    model = live_model(depth=1)
    n = torch.export.Dim("n", min=1, max=64)
    exported = torch.export.export(model, batch(model), dynamic_shapes=({0: n}, {0: n}, {0: n})).module()
    for size in (1, 3, 7):
        inputs = batch(model, size)
        torch.testing.assert_close(exported(*inputs), model(*inputs))


@torch.no_grad()
def test_exports_with_any_size():
    model = live_model(depth=1)
    auto = torch.export.Dim.AUTO
    shapes = ({0: auto, 2: auto, 3: auto}, {0: auto}, {0: auto})
    exported = torch.export.export(model, batch(model, 3, 8, 12), dynamic_shapes=shapes).module()
    for n, height, width in [(2, 8, 8), (5, 4, 6)]:
        inputs = batch(model, n, height, width)
        torch.testing.assert_close(exported(*inputs), model(*inputs))
