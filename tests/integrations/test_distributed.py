# SPDX-License-Identifier: Apache-2.0
"""Patched models wrapped afterwards in DDP and FSDP (fully_shard), on one process."""

import copy

import pytest
import torch
from torch import nn

import dit_fast

from .lookalikes import Block, batch, dit_like

dist = pytest.importorskip("torch.distributed")
if not dist.is_available():
    pytest.skip("torch is built without torch.distributed", allow_module_level=True)

from torch.distributed.device_mesh import init_device_mesh  # noqa: E402
from torch.distributed.fsdp import fully_shard  # noqa: E402
from torch.nn.parallel import DistributedDataParallel  # noqa: E402


@pytest.fixture(scope="module", autouse=True)
def one_process(tmp_path_factory):
    store = tmp_path_factory.mktemp("store") / "file"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def gradients(model, strip=""):
    model(*batch()).square().mean().backward()
    found = {k.removeprefix(strip): p.grad for k, p in model.named_parameters() if p.requires_grad}
    return {k: g.full_tensor() if hasattr(g, "full_tensor") else g for k, g in found.items()}


def assert_close(got, expected):
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=1e-3, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def test_ddp():
    model = dit_like()
    expected = gradients(copy.deepcopy(model))
    dit_fast.patch(model)
    wrapped = DistributedDataParallel(model)
    assert_close(gradients(wrapped, "module."), expected)
    assert not dit_fast.patch(wrapped).replaced and len(dit_fast.unpatch(wrapped).replaced) == 8


@pytest.mark.parametrize("parts", ("blocks", "blocks and layers"))
def test_fully_shard(parts):
    model = dit_like()
    expected = gradients(copy.deepcopy(model))
    keys = list(model.state_dict())
    dit_fast.patch(model)
    mesh = init_device_mesh("cpu", (1,))
    for module in reversed(list(model.modules())):  # children first
        if isinstance(module, Block) or (parts != "blocks" and isinstance(module, nn.Linear)):
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)
    assert_close(gradients(model), expected)
    assert list(model.state_dict()) == keys
    report = dit_fast.unpatch(model)
    assert {s.name: s.why for s in report.skipped} == {
        f"blocks.{i}": "wrapped after patch: FSDPBlock derives from it" for i in range(2)
    }
    assert len(report.replaced) == 6


def test_patching_what_is_sharded_already():
    model = dit_like()
    expected = gradients(copy.deepcopy(model))
    mesh = init_device_mesh("cpu", (1,))
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    report = dit_fast.patch(model)
    assert [s.why for s in report.skipped] == [
        "its forward could not be followed (AssertionError: FSDP does not support deepcopy. Please use state dict for "
        "serialization.)"
    ] * 2
    assert len(report.replaced) == 6
    assert_close(gradients(model), expected)
    dit_fast.unpatch(model)
    assert_close(gradients(model), {k: 2 * g for k, g in expected.items()})
