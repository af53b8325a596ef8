# SPDX-License-Identifier: Apache-2.0
"""python -m benchmarks: time every op at the XL/2 model's shapes beside eager PyTorch and torch.compile."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks.environment import environment
from benchmarks.ops import Row, bench
from benchmarks.timing import copy_bandwidth
from dit_fast.ops import specs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--op", action="append", choices=list(specs()), help="only this op (may be repeated)")
    parser.add_argument("--dtype", action="append", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--batch", type=int, action="append", help="images (may be repeated; default 8)")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path)


def kernels(name: str, device: str) -> list[str]:
    """The backends of an op that are kernels of this package, on this device."""
    op = specs()[name].op
    return ["cpu"] if device == "cpu" else [b for b in ("cuda", "triton") if b == "triton" or b in op.native]


def run(arguments: argparse.Namespace) -> list[Row]:
    """Print the table as it is measured; the answer is its rows."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    copy = copy_bandwidth(device)
    about = environment(device)
    print(", ".join(f"{k} {v}" for k, v in about.items()))
    print(f"copy bandwidth {copy:.1f} GB/s, bytes read and written")
    print(
        f"{'op':22s}{'batch':>6s} {'dtype':10s}{'direction':10s}{'L2':6s}{'backend':9s}"
        f"{'ms':>9s}{'spread':>8s}{'GB/s':>8s}{'of copy':>9s}{'x eager':>9s}"
    )
    rows = []
    for name in arguments.op or specs():
        spec = specs()[name]
        for batch in arguments.batch or [8]:
            for dtype in (getattr(torch, d) for d in arguments.dtype or ["float32", "bfloat16"]):
                case = spec.bench(batch)
                for row in bench(spec, case, dtype, kernels(name, device), device, arguments.rounds, copy):
                    rows.append(row)
                    print(
                        f"{row.op:22s}{batch:6d} {row.dtype:10s}{row.direction:10s}{row.l2:6s}{row.backend:9s}"
                        f"{row.ms:9.3f}{row.spread:8.0%}{row.gbytes_per_s:8.1f}{row.share:9.0%}{row.ratio_to_eager:9.2f}",
                        flush=True,
                    )
    if arguments.json:
        result = {"environment": about, "copy_gbytes_per_s": copy, "rows": [asdict(row) for row in rows]}
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    run(parser.parse_args())
