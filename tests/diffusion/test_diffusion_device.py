# SPDX-License-Identifier: Apache-2.0
"""A step stays on its device: nothing is read back or copied over, so it can be captured or compiled.

The meta device stands for an accelerator: reading one of its values raises, and a host tensor shows.

LEGEND: N batch, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dit_fast.diffusion import Diffusion, create_diffusion, with_guidance


def learned(x: Tensor, t: Tensor) -> Tensor:
    return torch.cat([torch.sin(3 * x) + t.view(-1, 1, 1, 1) / 1000, torch.cos(2 * x)], dim=1)


def conditional(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
    return learned(x, t) * y.view(-1, 1, 1, 1)


STEPS: dict[str, Callable[[Diffusion, Tensor, Tensor], Tensor]] = {
    "train": lambda d, x, t: d.training_losses(learned, x, t)["loss"],
    "q_sample": lambda d, x, t: d.q_sample(x, t),
    "ddpm": lambda d, x, t: d.p_sample(learned, x, t)["sample"],
    "ddim": lambda d, x, t: d.ddim_sample(learned, x, t, eta=0.5)["sample"],
    "guided": lambda d, x, t: d.p_sample(
        with_guidance(conditional, 4.0, 10), x, t, model_kwargs={"y": torch.ones_like(t)}
    )["sample"],
}


class HostTensors(TorchDispatchMode):
    """Collects the ops that touch a host tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, Tensor)]
        if any(tensor.device.type == "cpu" for tensor in tensors):
            self.found.append(str(func))
        return out


@pytest.mark.parametrize("name", STEPS)
def test_a_step_neither_reads_back_nor_copies_over(name: str) -> None:
    diffusion = create_diffusion("250")
    x, t = torch.zeros(2, 3, 4, 4, device="meta"), torch.zeros(2, dtype=torch.int64, device="meta")
    with HostTensors() as first:
        STEPS[name](diffusion, x, t)  # copies the table
    with HostTensors() as second:
        out = STEPS[name](diffusion, x, t)
    assert out.device.type == "meta"
    assert first.found and not second.found


def test_a_sampling_loop_copies_the_table_only() -> None:
    diffusion = create_diffusion("20")
    with HostTensors() as mode:
        diffusion.p_sample_loop(learned, (2, 3, 4, 4), device="meta")
    assert len(mode.found) == 2  # the coefficients and the timestep map


@pytest.mark.parametrize("name", STEPS)
def test_a_step_compiles_whole(name: str) -> None:
    diffusion = create_diffusion("50")
    x, t = torch.randn(2, 3, 4, 4), torch.tensor([0, 49])
    torch.manual_seed(0)
    expected = STEPS[name](diffusion, x, t)
    compiled = torch.compile(STEPS[name], fullgraph=True, backend="aot_eager")
    torch.manual_seed(0)
    torch.testing.assert_close(compiled(diffusion, x, t), expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="a CUDA graph needs a CUDA device")
@pytest.mark.parametrize("name", ["ddim0", "train"])
def test_a_step_replays_from_a_cuda_graph(name: str) -> None:
    diffusion = create_diffusion("50")
    x, t = torch.randn(2, 3, 4, 4, device="cuda"), torch.tensor([49, 7], device="cuda")
    noise = torch.randn_like(x)

    def step() -> Tensor:
        if name == "train":
            return diffusion.training_losses(learned, x, t, noise=noise)["loss"]
        return diffusion.ddim_sample(learned, x, t)["sample"]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = step()
    x.copy_(torch.randn_like(x))
    t.copy_(torch.tensor([0, 30]))
    graph.replay()
    torch.testing.assert_close(out, step())
