# SPDX-License-Identifier: Apache-2.0
"""What the planner knows of GPUs and links: their makers' datasheets, nothing measured."""

from dataclasses import dataclass

from dit_fast.train.metrics import DENSE_BF16_TFLOPS

TERA, GIGA = 1e12, 1e9


@dataclass(frozen=True)
class Gpu:
    """One GPU as it stands in its maker's usual server.

    Attributes:
        memory: bytes.
        peak: dense matrix operations a second, by what they multiply.
        nvlink: bytes a second to the other GPUs of the node, one direction.
        nic: bytes a second to other nodes, one direction, of the one adapter a GPU has.
        per_node: GPUs of a node.
        source: where the numbers are from.
    """

    name: str
    memory: float
    peak: dict[str, float]
    nvlink: float
    nic: float
    per_node: int
    source: str


def _gpu(name: str, memory: float, nvlink: float, gbits: float, source: str) -> Gpu:
    peak = DENSE_BF16_TFLOPS[name] * TERA
    peaks = {"bfloat16": peak, "float32": peak / 2}
    return Gpu(name, memory * GIGA, peaks, nvlink * GIGA, gbits / 8 * GIGA, 8, source)


GPUS = {
    "a100": _gpu("A100", 80, 300, 200, "A100 80GB SXM and DGX A100 datasheets: NVLink 3, HDR InfiniBand"),
    "h100": _gpu("H100", 80, 450, 400, "H100 SXM and DGX H100 datasheets: NVLink 4, NDR InfiniBand"),
    "h200": _gpu("H200", 141, 450, 400, "H200 SXM and DGX H200 datasheets: NVLink 4, NDR InfiniBand"),
    "b200": _gpu("B200", 180, 900, 400, "DGX B200 datasheet: NVLink 5, NDR InfiniBand"),
}
"""By the name `--gpu` takes. float32 stands for TF32 products, at half of bfloat16's rate; sparsity is not counted."""
