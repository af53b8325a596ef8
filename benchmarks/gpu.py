# SPDX-License-Identifier: Apache-2.0
"""python -m benchmarks.gpu (`make gpu`): all that only a GPU can tell, in one command and a few minutes.

Builds the native library for the GPU present; then, side by side, the tests that need one, parity of every backend and
dtype with float64, the golden vectors of the PTX wrappers, and compute-sanitizer over small cases; then, alone, times
every op at the XL/2 model's shapes, batch 256 and 8. One JSON file a run goes to benchmarks/results/, to be committed.
Nothing is fetched: it needs nvcc, CMake, Ninja, pytest and the torch of the Python that runs it.
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
TAIL = 2000

SANITIZERS = ("memcheck", "racecheck", "initcheck")


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
    print(f"{name:23s}{'pass' if passed else 'FAIL'}  {seconds:6.1f} s  {log.relative_to(ROOT)}", flush=True)
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
        shutil.copy(BUILD / "_native.so", ROOT / "dit_fast" / "_native.so")
    return steps


def parity(part: str, *options: str) -> tuple[str, list[str], dict[str, str]]:
    """A step of its own for each part: Triton compiles for minutes."""
    table = str(BUILD / f"parity-{part}.json")
    return f"parity-{part}", [sys.executable, "-m", "dit_fast", "parity", *options, "--json", table], {}


def checks() -> list[dict[str, Any]]:
    """Correctness, several at a time: nothing is timed here."""
    python = sys.executable
    commands: list[tuple[str, list[str], dict[str, str]]] = [
        ("tests", [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/gpu"], {}),
        parity("native", "--backend", "cuda", "--backend", "cpu"),
        *(parity(f"triton-{d}", "--backend", "triton", "--dtype", d) for d in ("float32", "bfloat16", "float16")),
        ("ptx", [python, "-m", "tests.host_exec.record"], {}),
    ]
    for tool in SANITIZERS:
        watch = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9", python, "-m", "tests.gpu.small"]
        commands.append((tool, watch, {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}))
    with ThreadPoolExecutor(len(commands)) as pool:
        return list(pool.map(lambda c: run_step(c[0], c[1], 4, c[2]), commands))


def parity_summary() -> dict[str, Any]:
    rows = [row for path in sorted(BUILD.glob("parity-*.json")) for row in json.loads(path.read_text())["rows"]]
    compared = [row for row in rows if row["passed"] is not None]
    worst: dict[str, float] = {}
    for row in compared:
        key = f"{row['op']} {row['backend']} {row['dtype']}"
        worst[key] = max(worst.get(key, 0.0), row["ratio"] if row["ratio"] is not None else float("inf"))
    failed = [row for row in compared if not row["passed"]]
    return {"compared": len(compared), "failed": failed, "worst_ratio": worst}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--no-bench", action="store_true", help="correctness only")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("make gpu: this Python's torch sees no GPU", file=sys.stderr)
        return 2
    shutil.rmtree(BUILD, ignore_errors=True)
    BUILD.mkdir(parents=True)
    steps = build()
    built = all(step["passed"] for step in steps)
    if built:
        steps += checks()
    timings: dict[str, Any] = {}
    if built and not arguments.no_bench:
        table = BUILD / "bench.json"
        command = [
            sys.executable, "-m", "benchmarks", "--batch", "256", "--batch", "8", "--dtype", "bfloat16",
            "--rounds", str(arguments.rounds), "--json", str(table),
        ]  # fmt: skip
        steps.append(run_step("bench", command, 6))
        print((BUILD / "bench.log").read_text())
        timings = json.loads(table.read_text()) if table.exists() else {}

    from dit_fast.bench.environment import environment

    now = datetime.now(timezone.utc)
    result = {
        "date": now.isoformat(timespec="seconds"), "environment": environment("cuda"), "steps": steps,
        "parity": parity_summary(), "timings": timings,
    }  # fmt: skip
    device = re.sub(r"\W+", "-", torch.cuda.get_device_name().lower()).strip("-")
    path = arguments.out / f"{device}-{now:%Y%m%d-%H%M}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    failed = [step["step"] for step in steps if not step["passed"]]
    print(f"{path}: {'all passed' if not failed else 'FAILED: ' + ', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
