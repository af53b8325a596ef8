# SPDX-License-Identifier: Apache-2.0
"""python -m benchmarks.tune: what csrc/common/cuda/tuning.h should say of the GPU present.

Builds the AdaLN family with one choice after another, times its ops at the XL/2 model's shapes, keeps the better, and
prints the line to put. Offline: the table is part of the source.
"""

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / "tune"
OPS = ("adaln", "gated_residual", "gated_residual_adaln")


@dataclass(frozen=True)
class Tuning:
    """As in tuning.h."""

    blocks: int
    norm_forward: int
    norm_backward: int
    gate: int

    def flags(self) -> str:
        return " ".join(f"-DDIT_TUNE_{name.upper()}={value}" for name, value in asdict(self).items())

    def line(self) -> str:
        return f"return {{{', '.join(str(value) for value in asdict(self).values())}}};"


def candidates(multiprocessors: int) -> Iterator[tuple[str, int]]:
    """(field, value) to try, one field after another."""
    for per_multiprocessor in (1, 2, 3, 4, 8):
        yield "blocks", per_multiprocessor * multiprocessors
    for name in ("norm_forward", "norm_backward", "gate"):
        for tokens in (1, 2, 4, 8):
            yield name, tokens


def run(*command: str) -> None:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")


def cost(tuning: Tuning, rounds: int) -> float:
    """Time over that of a copy of the same bytes, summed over ops, directions, batch 256 and 8, with a cold L2."""
    major, minor = torch.cuda.get_device_capability()
    run(
        "cmake", "-S", ".", "-B", str(BUILD), "-G", "Ninja", f"-DPython_EXECUTABLE={sys.executable}",
        f"-DDIT_CUDA_ARCHITECTURES={major}{minor}{'a' if major == 9 else ''}-real",
        f"-DCMAKE_CUDA_FLAGS={tuning.flags()}",
    )  # fmt: skip
    run("cmake", "--build", str(BUILD), "--target", "dit_fast_native")
    shutil.copy(BUILD / "_native.so", ROOT / "dit_fast" / "_native.so")
    table = BUILD / "bench.json"
    run(
        sys.executable, "-m", "benchmarks", "--dtype", "bfloat16", "--batch", "256", "--batch", "8",
        "--backend", "cuda", "--peer", "eager", "--rounds", str(rounds), "--json", str(table),
        *(f"--op={op}" for op in OPS),
    )  # fmt: skip
    rows = json.loads(table.read_text())["rows"]
    return sum(1 / row["share"] for row in rows if row["backend"] == "cuda" and row["l2"] == "cold")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=25)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("benchmarks.tune: this Python's torch sees no GPU", file=sys.stderr)
        return 2
    multiprocessors = torch.cuda.get_device_properties().multi_processor_count
    best = Tuning(2 * multiprocessors, 4, 2, 4)
    least = cost(best, arguments.rounds)
    print(f"{least:8.3f}  {best}", flush=True)
    for name, value in candidates(multiprocessors):
        tried = replace(best, **{name: value})
        if tried == best:
            continue
        found = cost(tried, arguments.rounds)
        print(f"{found:8.3f}  {tried}", flush=True)
        if found < least:
            best, least = tried, found
    print(f"{torch.cuda.get_device_name()}, capability {torch.cuda.get_device_capability()}: {best.line()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
