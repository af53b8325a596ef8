# SPDX-License-Identifier: Apache-2.0
"""The memory estimate is held against what autograd really keeps on a CPU."""

import pytest
import torch

from dit_fast.models import CONDITIONING, DiT
from dit_fast.ops import use_backend
from dit_fast.ops.linear_gelu import cpu_linear
from dit_fast.parity import enliven
from dit_fast.train.config import TrainConfig
from dit_fast.train.memory import activation_bytes, estimate_memory

IMAGES = 2


def kept(model: DiT, autocast: bool) -> int:
    """Bytes of distinct memory that a forward saves, but for the images, the parameters and their casts."""
    height, width = (side * model.patch_size for side in model.grid)
    x = torch.randn(IMAGES, model.in_channels, height, width, dtype=model.pos_embed.dtype)
    known = {tensor.untyped_storage().data_ptr() for tensor in (x, *model.parameters())}
    shapes = {p.shape for p in model.parameters()} | {p.t().shape for p in model.parameters() if p.dim() == 2}
    found: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        cast = autocast and tensor.dtype == torch.bfloat16 and tensor.shape in shapes
        if tensor.untyped_storage().data_ptr() not in known and not cast:
            found[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    t, y = torch.arange(IMAGES), None if model.y_embedder is None else torch.zeros(IMAGES, dtype=torch.long)
    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with hooks, use_backend("cpu"), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        model(x, t, y)
    return sum(tensor.untyped_storage().nbytes() for tensor in found.values())


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointed"])
@pytest.mark.parametrize("precision", ["float32", "bf16", "pure_bf16"])
@pytest.mark.parametrize("conditioning", CONDITIONING)
def test_activations_are_those_that_autograd_keeps(conditioning, precision, checkpointing, monkeypatch):
    """Terms without a factor T are left out of the estimate, so it is a little below: 1 part in 50 at 160 tokens."""
    monkeypatch.setattr(cpu_linear, "CHOICE", {})  # as on a GPU
    model = enliven(DiT(
        input_size=(32, 20), hidden_size=96, depth=3, num_heads=3, mlp_ratio=3.0, num_classes=10,
        conditioning=conditioning,
    ))  # fmt: skip
    model = (model.bfloat16() if precision == "pure_bf16" else model).train()
    model.enable_gradient_checkpointing(checkpointing)
    found = kept(model, precision == "bf16")
    estimate = IMAGES * activation_bytes(model, precision, checkpointing, recomputed=False)
    assert 0.98 * found < estimate <= found


def test_a_cpu_with_linears_of_ours_keeps_half_of_an_mlp(own, monkeypatch):
    model = enliven(DiT(input_size=(32, 20), hidden_size=96, depth=3, num_heads=3, num_classes=10)).train()
    less = kept(model, False)
    monkeypatch.setattr(cpu_linear, "CHOICE", {})
    assert kept(model, False) - less == IMAGES * 3 * 160 * 4 * 96 * 4


def test_weights_gradients_and_states():
    model = DiT(input_size=8, hidden_size=64, depth=2, num_heads=1, num_classes=10)
    count = sum(p.numel() for p in model.parameters() if p.requires_grad)

    def of(ranks: int = 1, **fields):
        return estimate_memory(model, TrainConfig(batch_size=32, **fields), ranks)

    full = of(precision="float32")
    assert (full.weights, full.gradients, full.moments, full.average) == (4 * count, 4 * count, 8 * count, 4 * count)
    assert full.masters == full.copies == 0
    assert full.total == 20 * count + full.activations
    pure = of(precision="pure_bf16")
    assert (pure.weights, pure.gradients, pure.masters) == (2 * count, 2 * count, 4 * count)
    statistics = 32 * 16 * (2 * 4 * (4 + 1) + 8)  # stay float32
    assert pure.activations == (full.activations + statistics) // 2
    assert 1.8 * count < of(precision="bf16").copies < 2 * count
    assert of(4, precision="float32").activations == of(accumulate=4, precision="float32").activations
    assert of(4, precision="float32").weights == full.weights
    sharded = of(4, parallel="fsdp", precision="float32")
    assert sharded.moments == 2 * count and sharded.copies > 0
    assert of(4, parallel="fsdp", shard=2).moments == 4 * count


def test_the_estimate_needs_no_memory():
    with torch.device("meta"):
        model = DiT()
    memory = estimate_memory(model, TrainConfig(batch_size=8, accumulate=8))
    assert memory.weights == 4 * 674_834_720  # XL/2's 675,129,632 less the fixed positions
    assert memory.activations < 3e9 and activation_bytes(model, "bf16", True) < memory.activations / 3
