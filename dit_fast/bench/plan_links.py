# SPDX-License-Identifier: Apache-2.0
"""How long GPUs take to exchange gradients and weights, and how much of it computing does not hide.

With n GPUs on links that carry w bytes a second each way:

    all-reduce (DDP, a ring)            2 (n-1)/n bytes / w
    all-gather, reduce-scatter (FSDP2)    (n-1)/n bytes / w
    DDP: the backward with the gradients' all-reduce, in B buckets; the first is ready after 1/B of the backward:
        not hidden: max(comm / B, comm - backward (1 - 1/B))
    FSDP2: the forward with one all-gather, the backward with another and a reduce-scatter, in U units, the next one's
    weights gathered meanwhile:
        not hidden: max(gather / U, gather - forward (1 - 1/U)), and the same of the backward
"""

import math
from dataclasses import dataclass

from .plan_gpus import Gpu

BUCKET = 25 * 2**20
"""DDP's default."""


@dataclass(frozen=True)
class Link:
    """How n GPUs reach each other: bytes a second each way a GPU gets in a collective, seconds a hop, and why."""

    bandwidth: float
    latency: float
    source: str


def link_between(gpu: Gpu, gpus: int, nodes: int, efficiency: float, latency: float) -> Link:
    """NVLink in one node; between nodes a ring goes through every adapter of a node at once."""
    per_node = gpus // nodes
    bandwidth, words = gpu.nvlink, f"NVLink at {gpu.nvlink / 1e9:.0f} GB/s each way"
    if nodes > 1:
        between = per_node * gpu.nic
        bandwidth = min(bandwidth, between)
        words += f"; between nodes {per_node} adapters of {gpu.nic / 1e9:.0f} GB/s each way"
    used = bandwidth * efficiency
    source = f"{words} ({gpu.source}); collectives reach {efficiency:.0%} of it, {used / 1e9:.0f} GB/s"
    return Link(used, latency, source)


def collective_seconds(moved: float, n: int, link: Link, passes: int, calls: int = 1) -> float:
    """Of `moved` bytes in `calls` collectives of n GPUs; an all-reduce makes 2 passes, the others 1."""
    if n == 1:
        return 0.0
    return passes * ((n - 1) / n * moved / link.bandwidth + calls * math.ceil(math.log2(n)) * link.latency)


def ddp_seconds(moved: int, n: int, link: Link, backward: float) -> tuple[float, float]:
    """(communication, of which not hidden behind the backward) of a step with `moved` bytes of gradients."""
    buckets = max(1, math.ceil(moved / BUCKET))
    total = collective_seconds(moved, n, link, 2, buckets)
    return total, max(total / buckets, total - backward * (1 - 1 / buckets))


def fsdp_seconds(
    gathered: int, reduced: int, units: int, n: int, link: Link, forward: float, backward: float
) -> tuple[float, float]:
    """(communication, of which not hidden) of a step with so many bytes of weights and of gradients."""
    gather = collective_seconds(gathered, n, link, 1, units)
    scatter = collective_seconds(reduced, n, link, 1, units)
    hidden = 1 - 1 / units
    exposed = max(gather / units, gather - forward * hidden)
    exposed += max(scatter / units, gather + scatter - backward * hidden)
    return 2 * gather + scatter, exposed
