# SPDX-License-Identifier: Apache-2.0
"""The processes of a run: how they meet, and how a model is spread over them (DDP or FSDP2).

Started by `torchrun`, or by anything that sets its variables or initialises `torch.distributed`; else one process.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from dit_fast import env
from dit_fast.models import DiT

from .config import TrainConfig


@dataclass(frozen=True)
class Ranks:
    """This process among those of the run. `own` says that this run began the process group, and ends it."""

    rank: int
    world: int
    device: torch.device
    own: bool = False

    @property
    def first(self) -> bool:
        return self.rank == 0

    def barrier(self) -> None:
        if self.world > 1:
            dist.barrier()

    def sum_(self, tensor: Tensor) -> None:
        """Add up a tensor on the device over all ranks, in place."""
        if self.world > 1:
            dist.all_reduce(tensor)

    def gather(self, tensor: Tensor) -> Tensor:
        """Rows (n, ...) of every rank as (world * n, ...), in order of rank."""
        if self.world == 1:
            return tensor
        parts = [torch.empty_like(tensor) for _ in range(self.world)]
        dist.all_gather(parts, tensor.contiguous())
        return torch.cat(parts)

    def agree(self, problem: str | None) -> str | None:
        """The first problem that any rank has, the same on every rank."""
        if self.world == 1:
            return problem
        problems: list[str | None] = [None] * self.world
        dist.all_gather_object(problems, problem)
        return next((p for p in problems if p is not None), None)

    def from_first(self, value: Any) -> Any:
        """What rank 0 has, on every rank."""
        values = [value]
        if self.world > 1:
            dist.broadcast_object_list(values)
        return values[0]

    def leave(self) -> None:
        if self.own and dist.is_initialized():
            dist.destroy_process_group()


def connect(device: str | torch.device | None = None) -> Ranks:
    """Join the other processes, where there are any; each takes the GPU of its number on its machine."""
    launched = dist.is_available() and (dist.is_initialized() or env.launched())
    if device is None:
        kind = "cuda" if torch.cuda.is_available() else "cpu"
        device = torch.device("cuda", dist.get_node_local_rank(0)) if launched and kind == "cuda" else kind
    device = torch.device(device)
    if device.type == "cuda":
        device = torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)
        torch.cuda.set_device(device)
    if not launched:
        return Ranks(0, 1, device)
    own = not dist.is_initialized()
    if own:
        on_gpu = {"backend": "cpu:gloo,cuda:nccl", "device_id": device}
        dist.init_process_group(**(on_gpu if device.type == "cuda" else {"backend": "gloo"}))
    return Ranks(dist.get_rank(), dist.get_world_size(), device, own)


class Spread:
    """A model spread over the ranks.

    `model` keeps its class and the names of its parameters; `net` is what is called. Under "fsdp" the parameters are
    DTensors, sharded over `shard` ranks and replicated over the groups of them.
    """

    def __init__(self, model: DiT, config: TrainConfig, ranks: Ranks) -> None:
        self.model, self.ranks = model, ranks
        self.sharded = ranks.world > 1 and config.parallel == "fsdp"
        if config.compile:
            mode = None if config.compile is True else config.compile
            for part in model.blocks if self.sharded else [model]:  # FSDP's hooks stay outside of graphs
                part.compile(mode=mode)
        self.net: Callable[..., Tensor] = model
        if self.sharded:
            _shard(model, config, ranks)
        elif ranks.world > 1:
            devices = [ranks.device] if ranks.device.type == "cuda" else None
            self.net = DistributedDataParallel(model, device_ids=devices, gradient_as_bucket_view=True)

    @contextmanager
    def micro_batch(self, last: bool) -> Iterator[None]:
        """Gradients are reduced over the ranks in the last micro-batch of a step only."""
        if self.sharded:
            cast("Any", self.model).set_requires_gradient_sync(last)
        if isinstance(self.net, DistributedDataParallel) and not last:
            with self.net.no_sync():
                yield
        else:
            yield


def _shard(model: DiT, config: TrainConfig, ranks: Ranks) -> None:
    """FSDP2, a group for each block, one for what modulates it, and one for the rest.

    `DiT.forward` asks all blocks for their modulations before it runs the first; with a group of their own those
    weights are gathered then, and a block's others as it runs: each once a pass.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    size = config.shard or ranks.world
    if ranks.world % size:
        raise ValueError(f"train: `shard` must divide the number of ranks, {ranks.world}, got {config.shard}")
    if size < ranks.world:
        mesh = init_device_mesh(
            ranks.device.type, (ranks.world // size, size), mesh_dim_names=("replicate", "shard")
        )
    else:
        mesh = init_device_mesh(ranks.device.type, (size,), mesh_dim_names=("shard",))
    policy = MixedPrecisionPolicy(cast_forward_inputs=False)
    if config.precision != "float32":
        policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    # It says that such a view must not be written in place, which nothing here does.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")
    for block in model.blocks:
        modulating = [part for name, part in block.named_children() if name not in ("attn", "cross_attn", "mlp")]
        fully_shard(modulating, mesh=mesh, mp_policy=policy)
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)


def full(tensor: Tensor) -> Tensor:
    """The whole of a DTensor, which every rank must ask for; another tensor as it is."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def whole(tensors: dict[str, Tensor], device: torch.device, keep: bool = True) -> dict[str, Tensor]:
    """Whole tensors on `device`, gathered one after the other. Every rank must ask; who does not `keep` gets none."""
    found = {}
    for name, tensor in tensors.items():
        one = full(tensor.detach())
        if keep:
            found[name] = one.to(device)
    return found
