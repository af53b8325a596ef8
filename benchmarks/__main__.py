# SPDX-License-Identifier: Apache-2.0
"""python -m benchmarks: time every op at the XL/2 model's shapes beside eager PyTorch and torch.compile."""

import argparse
import json
import platform
import subprocess
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks.ops import bench
from dit_fast.ops import specs
from dit_fast.ops._core import native


def processor() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    return model or platform.processor()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--op", action="append", choices=list(specs()), help="only this op (may be repeated)")
    parser.add_argument("--dtype", action="append", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    backends = ["cpu"] if device == "cpu" else ["triton"]
    rows = []
    print(f"{processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}, {native.instruction_set()}")
    print(f"{'op':22s}{'dtype':10s}{'direction':10s}{'backend':10s}{'ms':>9s}{'spread':>8s}{'GB/s':>8s}{'x eager':>9s}")
    for name in arguments.op or specs():
        spec = specs()[name]
        for dtype in (getattr(torch, d) for d in arguments.dtype or ["float32", "bfloat16"]):
            for row in bench(spec, spec.bench(arguments.batch), dtype, backends, device, arguments.rounds):
                rows.append(row)
                print(
                    f"{row.op:22s}{row.dtype:10s}{row.direction:10s}{row.backend:10s}{row.ms:9.2f}{row.spread:8.0%}"
                    f"{row.gbytes_per_s:8.1f}{row.ratio_to_eager:9.2f}",
                    flush=True,
                )
    if arguments.json:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
        environment = {
            "processor": processor(), "threads": torch.get_num_threads(), "instruction_set": native.instruction_set(),
            "torch": torch.__version__, "python": platform.python_version(), "commit": commit,
        }  # fmt: skip
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps({"environment": environment, "rows": [asdict(r) for r in rows]}, indent=1))


if __name__ == "__main__":
    main()
