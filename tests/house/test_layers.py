# SPDX-License-Identifier: Apache-2.0
"""Rules of the house that a test holds: arrows point down, one folder per op, few environment variables, size."""

import ast
import re
import sys
from pathlib import Path

import pytest

from dit_fast.cli import build_parser
from dit_fast.ops import NAMES
from dit_fast.ops._core import OPS
from dit_fast.train.config import HINTS

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "dit_fast"

LEVEL = {
    "env": 0, "files": 0, "pictures": 0, "ops": 1, "nn": 2, "diffusion": 2, "optim": 2, "models": 3, "data": 3,
    "parity": 4, "train": 4, "sample": 4, "integrations": 4, "demo": 5, "kernels": 5, "bench": 6, "cli": 7,
}  # fmt: skip
"""A module imports from lower levels only. `models` is above `diffusion`, whose guidance it calls; `diffusion` takes
any model and imports torch only."""

ENVIRONMENT = {"DIT_FAST_BACKEND", "TRITON_INTERPRET"}

FIELD_OPTIONS = {
    f"--{no}{name.replace('_', '-')}"
    for name, hint in HINTS.items()
    for no in (("", "no-") if hint in (bool, bool | None) else ("",))
}
"""A flag for each field of a training run."""

OPTIONS = {
    "info": {"--markdown", "--kernels"},
    "parity": {"--op", "--backend", "--dtype", "--json"},
    "demo": {"--out", "--steps", "--seed"},
    "encode": {
        "--vae", "--image-size", "--no-flip", "--image-column", "--label-column", "--split", "--no-labels", "--dtype",
        "--compute-dtype", "--device", "--batch-size", "--shard-rows", "--processes", "--workers", "--verify",
    },
    "train": {"--preset", "--dry-run", "--ranks", *FIELD_OPTIONS},
    "sample": {
        "--classes", "--per-class", "--count", "--labels", "--seed", "--size", "--sampler", "--steps", "--eta",
        "--cfg-scale", "--cfg-interval", "--cfg-channels", "--vae", "--dtype", "--device", "--batch-size",
        "--no-modulation-cache", "--no-shared-patch-embedding", "--no-cuda-graph", "--out", "--images-dir", "--npz",
    },
    "evaluate": {"--reference", "--weights", "--layer", "--count", "--batch-size", "--json"},
    "convert": {"--to", "--which", "--num-heads", "--num-classes"},
    "bench": {
        "--op", "--model", "--batch", "--dtype", "--backend", "--peer", "--direction", "--device", "--image-size",
        "--steps", "--rounds", "--minutes", "--allow-load", "--json", "--html", "--compare", "--threshold", "--base",
    },
    "plan": {
        "--model", "--gpus", "--gpu", "--nodes", "--batch-size", "--precision", "--parallel", "--checkpointing",
        "--image-size", "--steps", "--results", "--step-ms", "--mfu", "--efficiency", "--latency-us", "--json",
        "--check",
    },
}  # fmt: skip

SOURCES = sorted(PACKAGE.rglob("*.py"))


def imports(path: Path) -> set[str]:
    """Absolute names of what a module of the package imports."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            prefix = ".".join((*base, *filter(None, [node.module])))
            found |= {prefix} | {f"{prefix}.{alias.name}" for alias in node.names}
    return found


def part(name: str) -> str | None:
    """The layer that a dotted name is in; None outside the package."""
    pieces = name.split(".")
    return pieces[1] if pieces[0] == "dit_fast" and len(pieces) > 1 and pieces[1] in LEVEL else None


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_arrows_point_down(path):
    own = part(".".join(path.relative_to(ROOT).with_suffix("").parts))
    if own is None:
        assert path.name in ("__init__.py", "__main__.py")
        return
    for name in imports(path):
        other = part(name)
        assert other is None or other == own or LEVEL[other] < LEVEL[own], f"{path} imports {name}"
    if own == "diffusion":
        outside = {n.split(".")[0] for n in imports(path)} - {"torch", "dit_fast", *sys.stdlib_module_names}
        assert not outside, outside
        assert all(part(n) in (None, "diffusion") for n in imports(path))


@pytest.mark.parametrize("op", NAMES)
def test_no_op_imports_another_and_each_has_its_room(op):
    for path in (PACKAGE / "ops" / op).glob("*.py"):
        others = {n for n in NAMES if n != op and any(f"{i}.".startswith(f"dit_fast.ops.{n}.") for i in imports(path))}
        assert not others, f"{path} imports {others}"
    operator = "autograd" if OPS[op].backward else "operator"
    for file in ("__init__", "reference", operator, "triton_kernel", "spec"):
        assert (PACKAGE / "ops" / op / f"{file}.py").is_file()


def test_folders_of_ops_are_the_ops():
    folders = {p.name for p in (PACKAGE / "ops").iterdir() if (p / "__init__.py").is_file()}
    assert folders == {*NAMES, "_core"}


def test_environment_variables_are_few_and_read_in_one_place():
    reads = re.compile(r"environ(?:\.get\(|\[)\s*[\"'](\w+)[\"']|getenv\(\s*[\"'](\w+)")
    assert {a or b for a, b in reads.findall((PACKAGE / "env.py").read_text())} == ENVIRONMENT
    assert len(ENVIRONMENT) <= 5
    for path in SOURCES:
        uses = [line.strip() for line in path.read_text().splitlines() if re.search(r"\b(environ|getenv)\b", line)]
        if path == PACKAGE / "cli" / "parity.py":  # sets Triton's own variable, reads none
            assert all(line.startswith('os.environ["TRITON_INTERPRET"] = "1"') for line in uses)
        elif path != PACKAGE / "env.py":
            assert not uses, path


def test_models_and_layers_know_no_backend_and_no_device():
    for path in [*(PACKAGE / "nn").glob("*.py"), *(PACKAGE / "models").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.If | ast.IfExp | ast.Match):
                test = ast.unparse(node.subject if isinstance(node, ast.Match) else node.test)
                assert not re.search(r"backend|device|cuda|triton", test), f"{path}:{node.lineno}: {test}"


def test_options_of_the_command():
    subparsers = next(a for a in build_parser()._actions if a.dest == "command")
    found = {
        name: {o for action in command._actions for o in action.option_strings} - {"-h", "--help"}
        for name, command in subparsers.choices.items()
    }
    assert found == OPTIONS


def test_assembly_is_in_the_wrapper_headers_only():
    """PTX has one home, where each wrapper has a C++ twin that runs on a CPU; kernels call wrappers. products.h has one
    instruction of some CPUs, with its twin beside it; context.h switches CPU stacks."""
    csrc = ROOT / "csrc"
    others = csrc / "common" / "cpu" / "products.h", csrc / "host_exec" / "context.h"
    homes = {*csrc.glob("common/cuda/ptx*.cuh"), *others}
    assembly = re.compile(r"\b(?:asm|__asm|__asm__)\b\s*(?:volatile|__volatile__|goto|inline)?\s*[({]")
    for path in [p for p in csrc.rglob("*") if p.is_file() and p not in homes]:
        found = assembly.search(path.read_text())
        assert not found, f"{path}: {found[0]}"


def test_every_source_names_its_licence_and_fits_in_the_head():
    limits = {".py": 400, ".cpp": 600, ".h": 600, ".cuh": 600, ".cu": 600}
    tops = ("dit_fast", "csrc", "tests", "benchmarks", "examples")
    for path in [p for top in tops for p in (ROOT / top).rglob("*") if p.suffix in limits]:
        lines = path.read_text().splitlines()
        assert not lines or "SPDX-License-Identifier: Apache-2.0" in lines[0], path
        assert len(lines) <= limits[path.suffix], f"{path} has {len(lines)} lines"
