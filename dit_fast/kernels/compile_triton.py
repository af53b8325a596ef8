# SPDX-License-Identifier: Apache-2.0
"""Compiles every Triton kernel without a GPU. Run as a process of its own, since it takes launches over:

    python -m dit_fast.kernels.compile_triton FOLDER [OP ...]

The launchers of the ops run on CPU tensors of their spec's cases, in bfloat16 and float32, XL/2's case first. Each
launch is handed to Triton's own `JITFunction.run`, which specialises and compiles as it would on a GPU and is told not
to launch. FOLDER receives `<n>.<architecture>.cubin` files and index.json; a line is printed for each op.

One launch stands for all of the same kernel, dtypes, tile and warps: the first, which is XL/2's wherever it has that
tile. Others differ in which integers are known to be divisible by 16 or equal to 1. float16, whose tiles are
bfloat16's, is left out.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from dit_fast.ops import specs, use_backend
from dit_fast.ops._core import Case, Spec, op
from dit_fast.parity import run

ARCHITECTURES = {80: "sm_80", 90: "sm_90a", 100: "sm_100a"}
"""By compute capability, as Triton writes it and as it compiles."""

CASES = {
    "attention": (
        "N1-T130-H1-Dh64", "N1-T65-H1-Dh96", "N1-T65-H1-Dh128", "N2-T7-H2-Dh72-norm1-affine1-rope1",
    ),
    "final_layer": ("N2-A7-B9-D384-P2-C8-modulated-before", "N2-A2-B3-D64-P4-C8"),
    "patch_embed": ("N2-C4-H8-W12-P4-D64",),
}
"""Beside XL/2's, for ops whose kernels take long to compile; of other ops all cases are. Attention's
width 80 is left out: it is 72's kernels with fewer masks."""

BFLOAT16_CASES = ("N1-T130-H1-Dh64", "N1-T65-H1-Dh96")
"""Those not compiled in float32, whose tile is one for all widths: the widest uses most."""

LARGEST_BYTES = 2**30
"""An XL/2 case of more traffic (an optimizer's step) is not made up on a CPU; the op's own cases stand for it."""

DTYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}


class Target:
    """Stands in for Triton's driver: the device that a launch finds has no memory and no streams, only a capability."""

    def __init__(self) -> None:
        self.capability = min(ARCHITECTURES)

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return self.capability

    def get_current_stream(self, device: int) -> int:
        return 0


class Compiler:
    """Takes the place of `JITFunction.run`."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.target, self.compile = folder, Target(), JITFunction.run
        self.seen: set[tuple[Any, ...]] = set()
        self.index: list[dict[str, Any]] = []
        driver.set_active(self.target)

    def launch(self, kernel: Any, *arguments: Any, grid: Any, warmup: bool, **named: Any) -> None:
        given = kernel.signature.bind_partial(*arguments, **{k: v for k, v in named.items() if k in kernel.arg_names})
        dtypes = tuple(v.dtype for v in given.arguments.values() if isinstance(v, torch.Tensor))
        tile = {p.name: given.arguments[p.name] for p in kernel.params if p.is_constexpr}
        options = {k: v for k, v in named.items() if k not in kernel.arg_names}
        key = (kernel, dtypes, tuple(tile.items()), tuple(options.items()))
        if key in self.seen:
            return
        self.seen.add(key)
        name = kernel_name(kernel, dtypes, tile)
        for capability, arch in ARCHITECTURES.items():
            self.target.capability = capability
            try:
                compiled = self.compile(kernel, *arguments, grid=grid, warmup=True, **named)
            except Exception as error:
                raise RuntimeError(f"{name} does not compile for {arch}") from error
            file = f"{len(self.index)}.{arch}.cubin"
            (self.folder / file).write_bytes(compiled.asm["cubin"])
            self.index.append({"file": file, "name": name, "shared": compiled.metadata.shared})

    def run_cases(self, spec: Spec) -> None:
        for dtype in (torch.bfloat16, torch.float32):
            for case in cases(spec, dtype):
                self.run_case(spec, case, dtype)

    def run_case(self, spec: Spec, case: Case, dtype: torch.dtype) -> None:
        """Forward and backward of one case; nothing is computed, so the results are not looked at."""

        def launch(kernel: Any, *arguments: Any, **named: Any) -> None:
            self.launch(kernel, *arguments, **named)

        with (
            mock.patch.object(JITFunction, "run", launch),
            mock.patch.object(op, "triton_why_not", lambda device: None),
            use_backend("triton"),
        ):
            run(spec.function, spec.make(case, dtype), spec.gradients, dtype)


def cases(spec: Spec, dtype: torch.dtype) -> list[Case]:
    bench, own = spec.bench(1)[0], {case.name: case for case in spec.cases}
    small = spec.cost(bench.dims, torch.float32.itemsize).forward_bytes <= LARGEST_BYTES
    names = [n for n in CASES.get(spec.op.name, own) if dtype == torch.bfloat16 or n not in BFLOAT16_CASES]
    return [bench] * small + [own[name] for name in names]


def kernel_name(kernel: Any, dtypes: tuple[torch.dtype, ...], tile: dict[str, Any]) -> str:
    """`adaln._forward_kernel<bf16, BLOCK_D=2048>`: the storage dtype; statistics and sums are float32 in any case."""
    *_, room, file = kernel.fn.__module__.split(".")
    owner = file if room == "_core" else room  # an op's kernels are in one file or several
    storage = [DTYPES.get(d, str(d)) for d in dict.fromkeys(dtypes) if d != torch.float32] or ["fp32"]
    inside = ", ".join(["/".join(storage), *(f"{k}={v}" for k, v in tile.items())])
    return f"{owner}.{kernel.fn.__name__}<{inside}>"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("ops", nargs="*")
    parser.add_argument("--cache", type=Path, required=True)
    arguments = parser.parse_args()
    knobs.cache.dir = str(arguments.cache)
    compiler = Compiler(arguments.folder)
    for name, spec in specs().items():
        if name in (arguments.ops or [name]):
            start, before = time.perf_counter(), len(compiler.index)
            compiler.run_cases(spec)
            spent = time.perf_counter() - start
            print(f"{name}: {len(compiler.index) - before} kernels, {spent:.0f} s", flush=True)
    (arguments.folder / "index.json").write_text(json.dumps(compiler.index))


if __name__ == "__main__":
    main()
