# SPDX-License-Identifier: Apache-2.0
"""Show versions, the native library, and which backend of each op can run here; or what the kernels use."""

import argparse
import platform

import torch

import dit_fast
from dit_fast.kernels import ptx_architectures, read_library, table, triton_kernels
from dit_fast.ops import BACKENDS, NAMES, specs
from dit_fast.ops._core import native, tensors_in
from dit_fast.ops._core.triton_support import TRITON_MISSING


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--markdown", action="store_true", help="print only the README's op x backend table")
    parser.add_argument(
        "--kernels", nargs="*", metavar="OP", help="print registers, shared memory, spills and matrix instructions of"
        " each GPU kernel (of these ops), as compiled; takes minutes, needs no GPU",
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    if arguments.markdown:
        print(markdown_table())
        return 0
    if arguments.kernels is not None:
        return print_kernels(arguments.kernels)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print(f"dit_fast {dit_fast.__version__}, torch {torch.__version__}, Python {platform.python_version()}")
    print(f"device: {torch.cuda.get_device_name() if device == 'cuda' else 'cpu'}, {torch.get_num_threads()} threads")
    if native.MISSING:
        print(f"native library: none: {native.MISSING}")
        print("running on the Python backends")
    else:
        print(f"native library: {native.LIBRARY.name}, instruction set {native.instruction_set()}"
              f" of {', '.join(native.instruction_sets())}")  # fmt: skip
    for name, spec in specs().items():
        tensors = list(tensors_in(list(spec.make(spec.cases[0], torch.float32, device).values())))
        print(f"\n{name}")
        for backend in spec.op.names():
            reason = spec.op.why_not(backend, tensors)
            print(f"  {backend:10s} {'runs' if reason is None else 'no: ' + reason}")
    return 0


def print_kernels(ops: list[str]) -> int:
    for op in ops:
        if op not in NAMES:
            raise ValueError(f"`--kernels` must name ops among {', '.join(NAMES)}, got {op!r}")
    if native.MISSING:
        print(f"CUDA kernels: none: {native.MISSING}")
    else:
        kernels = read_library(native.LIBRARY)
        shown = [kernel for kernel in kernels if kernel.name.startswith(tuple(ops) or "")]
        if kernels:
            ptx = ", ".join(sorted(ptx_architectures(native.LIBRARY))) or "none"
            print(f"CUDA kernels of {native.LIBRARY.name} (PTX for later GPUs: {ptx})\n{table(shown)}")
        else:
            print(f"CUDA kernels: none: {native.LIBRARY.name} was built without nvcc")
    if TRITON_MISSING:
        print(f"\nTriton kernels: none: {TRITON_MISSING}")
        return 0
    print("\nTriton kernels: compiling for sm_80, sm_90a and sm_100a", flush=True)
    print(table(triton_kernels(ops, progress=lambda line: print(f"  {line}", flush=True))))
    return 0


def markdown_table() -> str:
    """Which kernels each op has, from the specs; no matter what this machine can run."""
    lines = ["| op | " + " | ".join(BACKENDS) + " |", "|---" * (len(BACKENDS) + 1) + "|"]
    for name, spec in specs().items():
        kernels = "forward, backward" if spec.op.backward else "in place"
        cells = {
            "reference": "PyTorch, any device",
            "cpu": "C++",
            "triton": kernels,
            "cuda": kernels,
            **spec.op.about,
        }
        lines.append(f"| `{name}` | " + " | ".join(cells[b] for b in BACKENDS) + " |")
    return "\n".join(lines)
