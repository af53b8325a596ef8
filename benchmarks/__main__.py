# SPDX-License-Identifier: Apache-2.0
"""python -m benchmarks: time every op at the models' shapes beside eager PyTorch, torch.compile and other libraries."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks.environment import environment
from benchmarks.ops import PEERS, Row, bench
from benchmarks.timing import copy_bandwidth
from dit_fast.ops import specs
from dit_fast.ops._core import tensors_in


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--op", action="append", choices=list(specs()), help="only this op (may be repeated)")
    parser.add_argument("--dtype", action="append", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--backend", action="append", help="only this backend (may be repeated)")
    parser.add_argument("--peer", action="append", choices=PEERS, help="only this peer (may be repeated)")
    parser.add_argument("--batch", type=int, action="append", help="images (may be repeated; default 8)")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path)


def kernels(name: str, device: str) -> list[str]:
    """The backends of an op that are kernels of this package, on this device."""
    op = specs()[name].op
    return ["cpu"] if device == "cpu" else [b for b in ("cuda", "triton") if b == "triton" or b in op.native]


def libraries(name: str, device: str, dtype: torch.dtype) -> list[str]:
    """The libraries' kernels that can run here; those that cannot are listed with their reason."""
    spec, present = specs()[name], []
    tensors = list(tensors_in(list(spec.make(spec.bench(1)[0], dtype, device).values()))) if spec.op.libraries else []
    for library in spec.op.libraries:
        reason = spec.op.why_not(library, tensors)
        if reason is None:
            present.append(library)
        else:
            print(f"{name:22s}{'':7s}{str(dtype).removeprefix('torch.'):26s}{library}: absent: {reason}")
    return present


def run(arguments: argparse.Namespace) -> list[Row]:
    """Print the table as it is measured; the answer is its rows."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    copy = copy_bandwidth(device)
    about = environment(device)
    print(", ".join(f"{k} {v}" for k, v in about.items()))
    print(f"copy bandwidth {copy:.1f} GB/s, bytes read and written")
    print(
        f"{'op':22s}{'dtype':10s}{'direction':10s}{'L2':6s}{'backend':16s}"
        f"{'ms':>9s}{'spread':>8s}{'GB/s':>8s}{'of copy':>9s}{'TFLOP/s':>9s}{'x eager':>9s}"
    )
    rows, peers = [], tuple(arguments.peer or PEERS)
    for name in arguments.op or specs():
        spec = specs()[name]
        backends = arguments.backend or kernels(name, device)
        for batch in arguments.batch or [8]:
            for dtype in (getattr(torch, d) for d in arguments.dtype or ["float32", "bfloat16"]):
                others = libraries(name, device, dtype)
                for case in spec.bench(batch):
                    print(f"{name}: {case.name}")
                    for row in bench(spec, case, dtype, backends, others, peers, device, arguments.rounds, copy):
                        rows.append(row)
                        print(text(row), flush=True)
                    if arguments.json:  # after each case, for a run that is cut short
                        result = {"environment": about, "copy_gbytes_per_s": copy, "rows": [asdict(r) for r in rows]}
                        arguments.json.parent.mkdir(parents=True, exist_ok=True)
                        arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    return rows


def text(row: Row) -> str:
    return (
        f"{row.op:22s}{row.dtype:10s}{row.direction:10s}{row.l2:6s}{row.backend:16s}{row.ms:9.3f}{row.spread:8.0%}"
        f"{row.gbytes_per_s:8.1f}{row.share:9.0%}{row.tflops:9.3g}{row.ratio_to_eager:9.2f}"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    run(parser.parse_args())
