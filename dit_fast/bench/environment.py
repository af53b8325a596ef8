# SPDX-License-Identifier: Apache-2.0
"""Where a result was measured: device, driver, versions, commit, and which libraries were there to compare with."""

import importlib.metadata
import importlib.util
import platform
import subprocess
from pathlib import Path

import torch

from dit_fast.ops._core import native

LIBRARIES = (
    "flash-attn", "liger-kernel", "quack-kernels", "transformer-engine", "xformers", "diffusers", "openvino",
    "onnxruntime",
)  # fmt: skip
"""Libraries with kernels near ours, none of which computes an adaptive norm with a gated residual; with DiTs; and
runtimes of models."""


def output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()
    except OSError:
        return ""


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    return model or platform.processor()


def version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def environment(device: str) -> dict[str, str]:
    """For the head of a table and for JSON."""
    about = {"device": processor() if device == "cpu" else torch.cuda.get_device_name()}
    if device == "cuda":
        about["driver"] = output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").split("\n")[0]
    else:
        about["threads"] = str(torch.get_num_threads())
        about["instruction set"] = str(native.instruction_set())
    about |= {"torch": torch.__version__, "triton": version("triton"), "python": platform.python_version()}
    about |= {name: version(name) for name in LIBRARIES}
    commit, changed = output("git", "rev-parse", "HEAD"), output("git", "status", "--porcelain", "--untracked-files=no")
    return {**about, "commit": commit + (" and changes" if changed else "")}
