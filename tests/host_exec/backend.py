# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels as a backend "host_exec" for CPU tensors, and the cases small enough to run there.

What is called is the whole path that a GPU runs, checks, allocations and launches included; only the threads are
fibers.
"""

import torch

from dit_fast.ops import specs
from dit_fast.ops._core import OPS
from tests.host_exec.build import load

host_exec = load()

NAME = "host_exec"


def register(name: str) -> None:
    op, library = OPS[name], torch.ops.dit_fast_host_exec
    if NAME not in op.backends:
        forward = getattr(library, name).default
        backward = getattr(library, f"{name}_backward").default if op.backward else None
        op.register_backend(NAME, forward, backward, lambda tensors: op.limits and op.limits("cuda", tensors))


CUDA_OPS = [name for name in specs() if hasattr(torch.ops.dit_fast_host_exec, name)]

for each in CUDA_OPS:
    register(each)
