# SPDX-License-Identifier: Apache-2.0
"""Train a small DiT on handwritten digits, draw some, and measure them (a few minutes on two CPU cores)."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder for pictures, metrics, checkpoint")
    parser.add_argument("--steps", type=int, help="training steps (default: the demo's own)")
    parser.add_argument("--seed", type=int, default=0)


def run(arguments: argparse.Namespace) -> int:
    try:
        from dit_fast.demo import DemoConfig, run
    except ModuleNotFoundError as missing:
        raise ValueError(f"the demo needs {missing.name}: pip install 'dit_fast[demo]'") from missing

    options = {} if arguments.steps is None else {"steps": arguments.steps}
    metrics = run(arguments.out, DemoConfig(seed=arguments.seed, **options))
    for key, value in metrics.items():
        print(f"{key:26s}{value:.4g}" if isinstance(value, float) else f"{key:26s}{value}")
    print(f"pictures and checkpoint in {arguments.out}/: samples.png, loss.png, metrics.json, model.safetensors")
    return 0
