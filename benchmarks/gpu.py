# SPDX-License-Identifier: Apache-2.0
"""python -m benchmarks.gpu (`make gpu`): all that only a GPU can tell, in one command and a few minutes.

Builds the native library for the GPU present; then, side by side, the tests that need one, parity of every op and
backend with float64, the golden vectors of the PTX wrappers, compute-sanitizer over small cases, and what the timings
will need compiled; then, alone, times every op at the XL/2 model's shapes, batch 256 and 8. Each part is a process
with a time limit: a kernel that hangs or crashes loses its own rows only. One JSON file a run goes to
benchmarks/results/, to be committed; a summary is printed last. Nothing is fetched: it needs nvcc, CMake, Ninja, pytest
and the torch of the Python that runs it.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / "gpu"
OPS = sorted(path.parent.name for path in ROOT.glob("dit_fast/ops/[a-z]*/spec.py"))  # asking the package loads it
NATIVE = [name for name in OPS if list(ROOT.glob(f"csrc/ops/{name}/*.cu"))]
DTYPES = ("float32", "bfloat16", "float16")
TAIL = 2000

SANITIZERS = ("memcheck", "racecheck", "initcheck")

Command = tuple[str, list[str], dict[str, str]]
"""Name of a step, what to run, and variables for it."""


def run_step(
    name: str, command: list[str], minutes: float, environment: dict[str, str] | None = None
) -> dict[str, Any]:
    """Run one command from the root; its log goes to the build folder, its end and verdict into the result."""
    start = time.perf_counter()
    log = BUILD / f"{name}.log"
    with log.open("w") as out:
        try:
            code = subprocess.run(
                command, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT, timeout=60 * minutes,
                env={**os.environ, **(environment or {})},
            ).returncode  # fmt: skip
        except subprocess.TimeoutExpired:
            code = None
        except OSError as error:
            code = None
            out.write(str(error))
    seconds = time.perf_counter() - start
    passed = code == 0
    print(f"{name:40s}{'pass' if passed else 'FAIL'}  {seconds:6.1f} s  {log.relative_to(ROOT)}", flush=True)
    return {"step": name, "passed": passed, "seconds": round(seconds, 1), "exit": code, "log": log.read_text()[-TAIL:]}


def build() -> list[dict[str, Any]]:
    """For the GPU present only, the CPU kernels included."""
    major, minor = torch.cuda.get_device_capability()
    architecture = f"{major}{minor}{'a' if major == 9 else ''}-real"
    configure = [
        "cmake", "-S", ".", "-B", str(BUILD), "-G", "Ninja", f"-DPython_EXECUTABLE={sys.executable}",
        "-DDIT_CUDA=ON", f"-DDIT_CUDA_ARCHITECTURES={architecture}",
    ]  # fmt: skip
    steps = [run_step("configure", configure, 2), run_step("build", ["cmake", "--build", str(BUILD)], 5)]
    if steps[-1]["passed"]:
        os.replace(BUILD / "_native.so", ROOT / "dit_fast" / "_native.so")
    return steps


def tool(name: str, module: str, *options: str) -> Command:
    return name, [sys.executable, "-m", module, *options, "--json", str(BUILD / f"{name}.json")], {}


def parity(op: str, backend: str, *dtypes: str) -> Command:
    chosen = [f"--dtype={dtype}" for dtype in dtypes]
    name = "-".join(("parity", op, backend, *dtypes))
    return tool(name, "dit_fast", "parity", "--op", op, "--backend", backend, *chosen)


def bench(name: str, rounds: int, *ops: str) -> Command:
    options = ["ops", *(f"--op={op}" for op in ops), "--batch=256", "--batch=8", "--dtype=bfloat16"]
    options += [f"--rounds={rounds}", *(["--allow-load"] if name.startswith("compile") else [])]  # not to be believed
    return tool(name, "benchmarks", *options)


def sanitizer(tool: str, op: str) -> Command:
    watch = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9"]
    return (
        f"{tool}-{op}", [*watch, sys.executable, "-m", "tests.gpu.small", op], {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
    )  # fmt: skip


def check_commands(timed: bool) -> list[Command]:
    """All but the timings, those that take longest first."""
    ops = sorted(OPS, key=lambda op: op != "attention")
    return [
        *(sanitizer(tool, op) for tool in SANITIZERS for op in ops if op in NATIVE),
        *(bench(f"compile-{op}", 1, op) for op in ops if timed),
        *(parity(op, "triton", dtype) for op in [*ops, "model"] for dtype in DTYPES),
        ("tests", [sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider", "tests/gpu"],
         {"TRITON_INTERPRET": "0"}),
        ("ptx", [sys.executable, "-m", "tests.host_exec.record"], {}),
        *(parity(op, "cuda") for op in NATIVE),
        parity("model", "auto"),
        tool("parity-cpu", "dit_fast", "parity", "--backend", "cpu"),
    ]


def run_steps(commands: list[Command], minutes: float, workers: int) -> list[dict[str, Any]]:
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(lambda c: run_step(c[0], c[1], minutes, c[2]), commands))


def parity_summary() -> dict[str, Any]:
    rows = [row for path in sorted(BUILD.glob("parity-*.json")) for row in json.loads(path.read_text())["rows"]]
    compared = [row for row in rows if row["passed"] is not None]
    worst: dict[str, float] = {}
    for row in compared:
        key = f"{row['op']} {row['backend']} {row['dtype']}"
        worst[key] = max(worst.get(key, 0.0), row["ratio"] if row["ratio"] is not None else float("inf"))
    failed = [row for row in compared if not row["passed"]]
    return {"compared": len(compared), "failed": failed, "worst_ratio": worst}


def summary(result: dict[str, Any]) -> str:
    """A line a failure, and a line for each case timed with a cold L2: milliseconds of every backend."""
    lines = [f"FAIL {step['step']} (exit {step['exit']})" for step in result["steps"] if not step["passed"]]
    for row in result["parity"]["failed"][:20]:
        lines.append(" ".join(str(row[k]) for k in ("op", "backend", "dtype", "case", "tensor", "ratio", "note")))
    lines.append(f"parity: {result['parity']['compared']} tensors, {len(result['parity']['failed'])} failed")
    cases: dict[str, list[str]] = {}
    for row in result["timings"].get("rows", []):
        if row["l2"] == "cold":
            key = f"{row['name']} {row['case']} {row['direction']}"
            cases.setdefault(key, []).append(f"{row['backend']} {row['ms']:.4g} ({row['share'] or 0:.0%})")
    lines += [f"{key}: {', '.join(cells)}" for key, cells in cases.items()]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--no-build", action="store_true", help="use the native library that is there")
    parser.add_argument("--no-bench", action="store_true", help="correctness only")
    parser.add_argument("--only", metavar="REGEX", default="", help="only steps whose name it matches, the build aside")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("make gpu: this Python's torch sees no GPU", file=sys.stderr)
        return 2
    shutil.rmtree(BUILD, ignore_errors=True)
    BUILD.mkdir(parents=True)
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "2")  # of each of many processes
    steps = [] if arguments.no_build else build()
    if all(step["passed"] for step in steps):
        checks = [c for c in check_commands(not arguments.no_bench) if re.search(arguments.only, c[0])]
        steps += run_steps(checks, 4, os.cpu_count() or 1)
        if not arguments.no_bench and re.search(arguments.only, "bench"):
            steps += run_steps([bench("bench", arguments.rounds)], 6, 1)
            print((BUILD / "bench.log").read_text())

    from dit_fast.bench.environment import environment

    now = datetime.now(timezone.utc)
    table = BUILD / "bench.json"
    timings = json.loads(table.read_text()) if table.exists() else {}
    result = {
        "date": now.isoformat(timespec="seconds"), "environment": environment("cuda"), "steps": steps,
        "parity": parity_summary(), "timings": timings,
    }  # fmt: skip
    device = re.sub(r"\W+", "-", torch.cuda.get_device_name().lower()).strip("-")
    path = arguments.out / f"{device}-{now:%Y%m%d-%H%M}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(summary(result))
    failed = [step["step"] for step in steps if not step["passed"]]
    print(f"{path}: {'all passed' if not failed else 'FAILED: ' + ', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
