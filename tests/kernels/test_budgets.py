# SPDX-License-Identifier: Apache-2.0
"""Every CUDA and Triton kernel compiles for sm_80, sm_90a and sm_100 and keeps the budgets of budgets.toml."""

import os
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest

from dit_fast.kernels import Kernel, ptx_architectures, read_library, triton_kernels
from dit_fast.ops import NAMES
from dit_fast.ops._core import native

from .budgets import Budget, check, line, load

ROOT = Path(__file__).parents[2]
ARCHITECTURES = {"sm_80", "sm_90a", "sm_100"}
CUDA_SOURCES = sorted((ROOT / "csrc" / "ops").rglob("*.cu"))
NVCC = shutil.which("nvcc") or shutil.which("nvcc", path=os.path.join(os.environ.get("CUDA_HOME", ""), "bin"))
needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="the triton package is not installed")


@needs_triton
def test_triton_kernels_compile_and_keep_their_budgets():
    kernels = triton_kernels(cache=ROOT / "build" / "triton")
    assert {name.partition(".")[0] for name in (k.name for k in kernels)} == {*NAMES, "triton_common"}
    compiled = {k.name: {r.arch for r in kernels if r.name == k.name} for k in kernels}
    assert all(archs == {"sm_80", "sm_90a", "sm_100a"} for archs in compiled.values()), compiled
    assert any(k.tma or k.matrix for k in kernels)
    wrong = check(kernels, load("triton"))
    assert not wrong, "\n\n".join(wrong)


@pytest.mark.skipif(NVCC is None, reason="no nvcc on PATH or in CUDA_HOME: the CUDA kernels are not compiled here")
@pytest.mark.skipif(not CUDA_SOURCES, reason="csrc/ops has no .cu file")
def test_cuda_kernels_are_compiled_and_keep_their_budgets():
    assert native.MISSING is None, native.MISSING
    kernels = read_library(native.LIBRARY)
    by_arch = {arch: sorted(k.name for k in kernels if k.arch == arch) for arch in {k.arch for k in kernels}}
    assert set(by_arch) == ARCHITECTURES, f"{native.LIBRARY} holds kernels for {set(by_arch) or 'no architecture'}"
    assert by_arch["sm_80"] == by_arch["sm_90a"] == by_arch["sm_100"]
    assert ptx_architectures(native.LIBRARY) == {"sm_100"}
    wrong = check(kernels, load("cuda"))
    assert not wrong, "\n\n".join(wrong)


def kernel(name="op.k<bf16, D=8>", arch="sm_80", registers=40, shared=16, loads=0, stores=0, matrix=4):
    return Kernel(name, arch, registers, shared, 0, loads, stores, matrix, 0, 0, 0, 100)


FITS = Budget("op.k<bf16*", registers=40, shared=16, matrix=4)


@pytest.mark.parametrize(
    "found, budgets, said",
    [
        ([kernel()], [FITS], None),
        ([kernel(), kernel(registers=96, arch="sm_100")], [Budget("op*", 96, "sm_100", 16), FITS], None),
        ([kernel(loads=3, stores=2)], [Budget("op.k*", 40, shared=16, spills=5, why="a reason")], None),
        ([kernel(registers=41)], [FITS], "registers 41 is more than 40"),
        ([kernel(shared=32)], [FITS], "shared 32 is more than 16"),
        ([kernel(loads=1)], [FITS], "spills 1 is more than 0"),
        ([kernel(stores=1)], [FITS], "spills 1 is more than 0"),
        ([kernel(matrix=0)], [FITS], "matrix 0 is less than 4"),
        ([kernel(name="op.other<bf16>")], [], "covers"),
        ([kernel()], [FITS, Budget("op.k<bf16, D=8>", 40)], "stale, covers no kernel"),
        ([kernel()], [Budget("op.k*", 40, shared=16, spills=5, why="a reason")], "stale, nothing spills any more"),
        ([kernel(loads=5)], [Budget("op.k*", 40, shared=16, spills=5)], "`spills` needs its reason"),
    ],
)
def test_a_budget_broken_missing_or_stale_is_said(found, budgets, said):
    wrong = check(found, budgets)
    assert bool(wrong) == (said is not None), wrong
    assert said is None or said in wrong[0]


def test_the_line_to_put_is_accepted(tmp_path):
    rows = [kernel(), kernel(arch="sm_90a", registers=57), kernel("op.k<bf16, D=16>", loads=2), kernel("op.k<fp32>")]
    (wrong,) = check(rows, [])
    assert "op.k<bf16, D=16>" in wrong
    lines = wrong.partition("lines to put:\n")[2]
    assert lines.splitlines() == [
        '  { kernel = "op.k<bf16*", registers = 64, shared = 16, matrix = 4, spills = 2, why = "?" },',
        '  { kernel = "op.k<fp32>", registers = 40, shared = 16, matrix = 4 },',
    ]
    file = tmp_path / "budgets.toml"
    file.write_text(f"triton = [\n{lines}\n]")
    budgets = load("triton", file)
    assert check(rows, budgets) == [] and "\n".join(map(line, budgets)) == lines
