# SPDX-License-Identifier: Apache-2.0
"""Compare every kernel, forward and backward, with float64; exits with 1 if any fails or none could run.

For each op (and a whole small model), backend and dtype: the error against the float64 reference, eager PyTorch's own
error in the same dtype, and the ratio of the error to what is allowed. Without a GPU, Triton kernels run in Triton's
interpreter.
"""

import argparse
import json
import os
import platform
from itertools import product
from pathlib import Path

import torch


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--op", action="append", help="only this op, or `model` (may be repeated)")
    parser.add_argument("--backend", action="append", help="only this backend (may be repeated)")
    parser.add_argument("--dtype", action="append", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--json", type=Path, help="also write every compared tensor to this file")


def run(arguments: argparse.Namespace) -> int:
    gpu = torch.cuda.is_available()
    if not gpu:
        os.environ["TRITON_INTERPRET"] = "1"  # before the first kernel is imported

    from dit_fast.models import DiT
    from dit_fast.ops import specs
    from dit_fast.parity import Row, check_case, check_model, enliven

    known = specs()
    ops = arguments.op or [*known, "model"]
    backends = arguments.backend or (["cpu", "triton", "cuda"] if gpu else ["cpu", "triton"])
    dtypes = [getattr(torch, name) for name in arguments.dtype or ["float32", "bfloat16", "float16"]]
    for op in ops:
        if op not in known and op != "model":
            raise ValueError(f"`--op` must be one of {[*known, 'model']}, got {op!r}")

    def check(op: str, backend: str, dtype: torch.dtype) -> list[Row]:
        device = "cuda" if gpu and backend != "cpu" else "cpu"
        if op != "model":
            return [row for case in known[op].cases for row in check_case(known[op], backend, dtype, case, device)]
        model = DiT(input_size=8, hidden_size=144, depth=2, num_heads=2, num_classes=10, class_dropout_prob=0.0)
        x = torch.randn(3, 4, 8, 12, generator=torch.Generator().manual_seed(0))
        inputs = x, torch.tensor([3, 500, 999]), torch.tensor([1, 0, 9])
        return check_model(enliven(model).to(device), tuple(i.to(device) for i in inputs), backend, dtype)

    print(f"{'op':22s}{'backend':9s}{'dtype':10s}{'error':>10s}{'eager':>10s}{'ratio':>8s}  worst tensor")
    rows: list[Row] = []
    for op, backend, dtype in product(ops, backends, dtypes):
        found = check(op, backend, dtype)
        rows += found
        ran = [row for row in found if row.passed is not None]
        name = str(dtype).removeprefix("torch.")
        if not ran:
            print(f"{op:22s}{backend:9s}{name:10s}{found[0].note}")
            continue
        worst = max(ran, key=lambda row: row.ratio)
        verdict = "pass" if all(row.passed for row in ran) else "FAIL"
        print(
            f"{op:22s}{backend:9s}{name:10s}{worst.error:10.1e}{worst.eager_error:10.1e}{worst.ratio:8.2f}"
            f"  {verdict} {worst.tensor} of {worst.case} {worst.note}",
            flush=True,
        )
    compared = [row for row in rows if row.passed is not None]
    failed = [row for row in compared if not row.passed]
    print(f"{len(compared)} tensors compared, {len(failed)} failed; ratio = error / (allowance * eager error + floor)")
    if arguments.json:
        device = torch.cuda.get_device_name() if gpu else "cpu"
        environment = {"torch": torch.__version__, "python": platform.python_version(), "device": device}
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(
            json.dumps({"environment": environment, "rows": [row.as_dict() for row in rows]}, indent=1) + "\n"
        )
    return 1 if failed or not compared else 0
