# SPDX-License-Identifier: Apache-2.0
"""python -m benchmarks.end_to_end: whole models, their sampling, inference, training and memory, within a number of
minutes, the most telling first: DiT-XL/2 on the GPU present, or smaller models on a CPU, which has to be idle.

Each part is a process with a time limit of its own: one that hangs or crashes loses its own rows, and rows that were
measured stay. One JSON file a run goes to benchmarks/results/, to be committed. Nothing is fetched.
"""

import argparse
import re
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

from dit_fast.bench.environment import environment
from dit_fast.bench.runner import measure
from dit_fast.bench.schema import read
from dit_fast.bench.session import Options

ROOT = Path(__file__).resolve().parents[1]

XL = Options(models=("DiT-XL/2",), dtypes=("bfloat16",), device="cuda")

SAMPLE, MODEL, TRAIN = (replace(XL, kinds=(kind,)) for kind in ("sample", "model", "train"))
AUTO = ("auto",)

Parts = dict[str, tuple[float, list[Options]]]
"""Name: (minutes at most, what it measures), the most telling first. Compilers take minutes, so they come late."""

ON_GPU: Parts = {
    "sample": (2.5, [
        replace(SAMPLE, batches=(1,), steps=25, rounds=3, peers=("plain",)),
        replace(SAMPLE, batches=(32,), steps=10, rounds=3, peers=("plain",)),
        replace(SAMPLE, batches=(1,), steps=250, rounds=2, peers=("none",), backends=AUTO),
    ]),
    "model": (2.0, [
        replace(MODEL, batches=(1, 256, 32, 8, 128, 2, 4, 16, 64), rounds=7, peers=("plain", "diffusers")),
    ]),
    "train": (2.5, [
        replace(TRAIN, batches=(128, 32, 256, 64), rounds=5, peers=("plain",), backends=("auto", "auto, torch AdamW")),
    ]),
    "compiled": (3.0, [
        replace(MODEL, batches=(32,), rounds=7, peers=("compile",), backends=AUTO),
        replace(TRAIN, batches=(128,), rounds=5, peers=("compile",), backends=("auto", "auto, compiled")),
        replace(MODEL, batches=(1, 256), rounds=7, peers=("compile",), backends=AUTO),
    ]),
    "long": (2.0, [replace(SAMPLE, batches=(32,), steps=250, rounds=1, peers=("none",), backends=AUTO)]),
    "memory": (1.5, [replace(XL, kinds=("memory",), batches=(32,), peers=("eager", "plain"), backends=AUTO)]),
}  # fmt: skip

S = Options(models=("DiT-S/2",), dtypes=("float32",), device="cpu")
S_SAMPLE, S_MODEL, S_TRAIN = (replace(S, kinds=(kind,)) for kind in ("sample", "model", "train"))
RUNTIMES = ("openvino", "onnxruntime")
EMULATED = ("bfloat16",)
"""On a CPU without instructions for it PyTorch takes ten times as long: little of it is measured."""

ON_CPU: Parts = {
    "sample": (8.0, [
        replace(S_SAMPLE, dtypes=dtypes, batches=(1,), steps=10, rounds=3, peers=("plain",))
        for dtypes in (EMULATED, S.dtypes)
    ]),
    "model": (25.0, [
        replace(S_MODEL, batches=(2,), rounds=21),
        replace(S_MODEL, batches=(8,), rounds=15, peers=("plain", "compile", "compile-frozen", "diffusers", *RUNTIMES)),
        replace(S_MODEL, models=("DiT-B/2",), batches=(2, 8), rounds=11, peers=("plain", "compile", *RUNTIMES)),
    ]),
    "train": (8.0, [replace(S_TRAIN, batches=(8,), rounds=11, peers=("plain", "compile"))]),
    "bfloat16": (9.0, [
        replace(S_MODEL, dtypes=EMULATED, batches=(2,), rounds=3, peers=("plain", *RUNTIMES)),
        replace(S_TRAIN, dtypes=EMULATED, batches=(2,), rounds=2, peers=("plain",), backends=AUTO),
    ]),
    "unets": (8.0, [replace(S, models=(), kinds=("unets",), batches=(1,))]),
    "growth": (12.0, [replace(S, models=(), kinds=("growth",))]),
    "memory": (5.0, [replace(S, kinds=("memory",), batches=(8,), peers=("eager", "plain", *RUNTIMES), backends=AUTO)]),
}  # fmt: skip

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PARTS, MINUTES = (ON_GPU, 9.0) if DEVICE == "cuda" else (ON_CPU, 80.0)


def run_part(name: str, minutes: float, folder: Path, target: Path, commit: str = "") -> str:
    """What became of it; its rows are in `folder`, and with the others' in `target` as they come."""
    command = [sys.executable, "-m", "benchmarks.end_to_end", "--part", name, "--minutes", f"{minutes:.2f}",
               "--out", str(folder)]  # fmt: skip
    start = time.monotonic()
    process = subprocess.Popen(command, cwd=ROOT)
    while process.poll() is None and time.monotonic() - start < 60 * minutes:
        time.sleep(1)
        merge(folder, target, commit)
    late = process.poll() is None
    if late:
        process.kill()
    code = process.wait()
    merge(folder, target, commit)
    verdict = "stopped: out of time" if late else "done" if code == 0 else f"ended with {code}"
    return f"{name}: {verdict} after {time.monotonic() - start:.0f} s"


def merge(folder: Path, target: Path, commit: str = "") -> None:
    """The parts' files as one: the rows together, the first one's environment and ceilings."""
    parts = [read(path) for name in PARTS if (path := folder / f"{name}.json").exists()]
    if parts:
        absent = {what: reason for part in parts for what, reason in part.absent.items()}
        rows = [row for part in parts for row in part.rows]
        about = {**parts[0].environment, **({"commit": commit} if commit else {})}
        command = "python -m benchmarks.end_to_end"
        replace(parts[0], command=command, environment=about, rows=rows, absent=absent).write(target)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default=",".join(PARTS), help=f"parts, with commas: {','.join(PARTS)}")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="for all together")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--commit", default="", help="what is measured, where there is no git to ask")
    parser.add_argument("--part", choices=PARTS, help="this process is one part")
    arguments = parser.parse_args()
    if arguments.part:
        plan = [replace(options, minutes=arguments.minutes) for options in PARTS[arguments.part][1]]
        _, refused = measure(plan, DEVICE == "cuda", arguments.out / f"{arguments.part}.json")
        return 1 if refused else 0
    for name in arguments.only.split(","):
        if name not in PARTS:
            parser.error(f"--only must name parts among {', '.join(PARTS)}, got {name!r}")
    begun, verdicts = time.monotonic(), []
    about = environment(DEVICE)
    words = about["device"] if DEVICE == "cuda" else f"cpu {about['device']} {about['instruction set']}"
    device = re.sub(r"\W+", "-", words.lower()).strip("-")
    folder = ROOT / "build" / "end_to_end"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    target = arguments.out / f"{device}-{time.strftime('%Y%m%d-%H%M', time.gmtime())}-end-to-end.json"
    for name in arguments.only.split(","):
        left = arguments.minutes - (time.monotonic() - begun) / 60
        if left < 0.5:
            verdicts.append(f"{name}: not begun: out of time")
            continue
        verdicts.append(run_part(name, min(left, PARTS[name][0]), folder, target, arguments.commit))
    print("\n".join([*verdicts, f"{target}"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
