# SPDX-License-Identifier: Apache-2.0
"""Throughput in the paper's terms: multiply-adds (MACs) an image, FLOPs, and the share of the hardware's peak."""

import resource
import sys
from dataclasses import dataclass

import torch

from .config import TrainConfig

DENSE_BF16_TFLOPS = {
    "A100": 312.0,  # NVIDIA A100 data sheet
    "A800": 312.0,  # NVIDIA A800 data sheet
    "A30": 165.0,  # NVIDIA A30 data sheet
    "A10": 125.0,  # NVIDIA A10 data sheet
    "A40": 149.7,  # NVIDIA A40 data sheet
    "L4": 121.0,  # NVIDIA L4 data sheet: 242 with sparsity
    "L40S": 362.05,  # NVIDIA L40S data sheet
    "H100 PCIe": 756.0,  # NVIDIA H100 data sheet: 1,513 with sparsity
    "H100 NVL": 835.5,  # NVIDIA H100 NVL data sheet: 1,671 with sparsity
    "H100": 989.5,  # NVIDIA H100 data sheet, SXM: 1,979 with sparsity
    "H800": 989.5,  # NVIDIA H800 data sheet, SXM: 1,979 with sparsity
    "H200 NVL": 835.5,  # NVIDIA H200 data sheet: 1,671 with sparsity
    "H200": 989.5,  # NVIDIA H200 data sheet, SXM: 1,979 with sparsity
    "H20": 148.0,  # NVIDIA H20 data sheet
    "B200": 2250.0,  # NVIDIA DGX B200 data sheet: 4,500 a GPU with sparsity
}
"""Words of a GPU's name to its dense bfloat16 peak; a name has the first entry all of whose words are among its own."""


def known_peak(device_name: str) -> float | None:
    """TFLOP/s of a GPU by its name, as `torch.cuda.get_device_name` gives it; None where the table has no such GPU."""
    words = set(device_name.replace("-", " ").split())
    if "MIG" in words:  # a slice of the GPU
        return None
    for name in sorted(DENSE_BF16_TFLOPS, key=lambda name: -len(name.split())):
        if words >= set(name.split()):
            return DENSE_BF16_TFLOPS[name]
    return None


def peak_tflops(config: TrainConfig, device: torch.device | str) -> float | None:
    """What utilisation is measured against: the configuration's, or the data sheet's for a bf16 run on a known GPU.

    None where neither is known, and then there is no utilisation: a float32 run has another peak, a CPU no such number.
    """
    device = torch.device(device)
    if config.peak_tflops is not None:
        return config.peak_tflops
    if device.type != "cuda" or config.precision == "float32":
        return None
    return known_peak(torch.cuda.get_device_name(device))


@dataclass(frozen=True)
class Throughput:
    """Of all ranks together. `mfu` is None where the peak is not known."""

    images_per_second: float
    tflops: float
    mfu: float | None


def flops_per_image(macs: int) -> int:
    """FLOPs to train on one image: two a multiply-add, forward once and backward twice.

    What checkpointing computes again is not counted: the utilisation is the model's, not the hardware's.
    """
    return 2 * macs * 3


def throughput(images: int, seconds: float, macs: int, peak: float | None, ranks: int) -> Throughput:
    """
    Args:
        images: trained on in `seconds`, by all ranks.
        macs: multiply-adds of one image's forward (`dit_fast.models.count_macs`, the paper's count).
        peak: TFLOP/s of one rank's device.
    """
    rate = images / seconds
    tflops = rate * flops_per_image(macs) / 1e12
    return Throughput(rate, tflops, None if peak is None else tflops / (peak * ranks))


def memory_bytes(device: torch.device | str) -> int:
    """The most so far: allocated by PyTorch on a GPU (`torch.cuda.max_memory_allocated`), resident on a CPU."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024  # Linux counts in KiB


def memory_name(device: torch.device | str) -> str:
    return "peak allocated GPU memory" if torch.device(device).type == "cuda" else "peak resident memory"
