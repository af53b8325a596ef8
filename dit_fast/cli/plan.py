# SPDX-License-Identifier: Apache-2.0
"""Plan a training run on many GPUs: time of a step, memory of a GPU, communication; every assumption is printed.

The time rests on a training step measured on one such GPU (`dit-fast bench train`), or on `--step-ms` or `--mfu`; no
speed is invented. `--check` measures 1 and 2 processes on this machine's CPU beside what the same formulas say.
"""

import argparse
import json
import math
from dataclasses import fields
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="DiT-XL/2", help="of the paper's 12, or such a name and :depth=3")
    parser.add_argument("--gpus", type=int, default=8)
    parser.add_argument("--gpu", default="h200", help="a100, h100, h200 or b200")
    parser.add_argument("--nodes", type=int, help="default: as many as 8 GPUs each need")
    parser.add_argument("--batch-size", type=int, default=256, help="images a step over all GPUs (--check: a process)")
    parser.add_argument("--precision", choices=["float32", "bf16", "pure_bf16"], default="bf16")
    parser.add_argument("--parallel", choices=["ddp", "fsdp"], default="ddp")
    parser.add_argument("--checkpointing", action="store_true", help="recompute activations in the backward")
    parser.add_argument("--image-size", type=int, default=32, help="side of the latents: 32 for 256 pixels")
    parser.add_argument("--steps", type=int, default=400_000, help="of the whole run")
    parser.add_argument("--results", type=Path, action="append", metavar="FILE", help="measured steps; default: the"
                        " committed ones of this checkout")  # fmt: skip
    parser.add_argument("--step-ms", type=float, help="one GPU's step on its share of the batch, in place of results")
    parser.add_argument("--mfu", type=float, help="assume this share of the GPU's peak, in place of results")
    parser.add_argument("--efficiency", type=float, default=0.8, help="share of a link's bandwidth that is reached")
    parser.add_argument("--latency-us", type=float, default=5.0, help="of one hop")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the plan, or the check, to this file")
    parser.add_argument("--check", action="store_true", help="measure DDP with 1 and 2 processes here instead")


def run(arguments: argparse.Namespace) -> int:
    if arguments.check:
        from dit_fast.bench.plan_check import check, text_of

        result = check(arguments.model, arguments.batch_size)
        print(text_of(result))
        if arguments.json:
            result.write(arguments.json)
        return 0

    from dit_fast.bench.plan import Request, plan, text
    from dit_fast.bench.plan_measured import default_files, find

    told = {field.name: getattr(arguments, field.name) for field in fields(Request)}
    told["nodes"] = math.ceil(arguments.gpus / 8) if arguments.nodes is None else arguments.nodes
    request = Request(**told)
    request.check()
    files = arguments.results or default_files()
    named = arguments.results is not None
    measured = find(files, request.gpu, request.model, request.precision, request.image_size, explicit=named)
    found = plan(request, measured)
    print(text(found))
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(found.as_dict(), indent=1) + "\n")
    return 0
