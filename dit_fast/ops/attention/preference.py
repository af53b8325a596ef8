# SPDX-License-Identifier: Apache-2.0
"""Which attention `auto` takes: ours where a committed result shows it faster on that architecture, else PyTorch's."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .._core import KERNEL_DTYPES, native


@dataclass(frozen=True)
class Win:
    """`backend` was faster than PyTorch's attention, forward and backward together, on these calls.

    Attributes:
        architecture: an instruction set of CPU kernels ("avx2") or a compute capability ("sm_90").
        dtypes, widths: of the heads.
        keys: least and most tokens attended to.
        result: the file that shows it.
    """

    backend: str
    architecture: str
    dtypes: tuple[torch.dtype, ...]
    widths: tuple[int, ...]
    keys: tuple[int, int]
    result: str


WINS = (
    Win(
        "cpu", "avx2", (torch.float32, torch.bfloat16), (64, 72), (64, 1024),
        "benchmarks/results/cpu-amd-epyc-avx2-attention.json",
    ),
    Win("cuda", "sm_90", (torch.bfloat16,), (72,), (64, 1024), "benchmarks/results/nvidia-h200-attention.json"),
    Win("cuda", "sm_90", (torch.bfloat16,), (64,), (64, 256), "benchmarks/results/nvidia-h200-attention.json"),
)  # fmt: skip

DEFAULT = {"cpu": ("sdpa", "cpu", "reference"), "cuda": ("sdpa", "cuda", "triton", "reference")}

_architectures: dict[tuple[str, int | None], str] = {}


@torch.compiler.assume_constant_result
def architecture(kind: str, index: int | None) -> str:
    """Of a device: what `Win.architecture` names."""
    if kind == "cpu":
        return native.instruction_set() or "none"
    if (kind, index) not in _architectures:
        major, minor = torch.cuda.get_device_capability(index)
        _architectures[kind, index] = f"sm_{major}{minor}"
    return _architectures[kind, index]


def preference(tensors: Sequence[Tensor]) -> tuple[str, ...]:
    """Backends in the order to try for q (packed or not) and, if separate, k and v."""
    q, keys = tensors[0], tensors[-1].shape[1]
    return order(q.device, q.dtype, q.shape[-1], keys)


def order(device: torch.device, dtype: torch.dtype, width: int, keys: int) -> tuple[str, ...]:
    """The same for heads so wide and so many tokens attended to."""
    if device.type not in DEFAULT or dtype not in KERNEL_DTYPES:
        return ("reference",)
    found = architecture(device.type, device.index)
    ours = [
        win.backend
        for win in WINS
        if win.architecture == found
        and dtype in win.dtypes
        and width in win.widths
        and win.keys[0] <= keys <= win.keys[1]
    ]
    return tuple(dict.fromkeys((*ours, *DEFAULT[device.type])))
