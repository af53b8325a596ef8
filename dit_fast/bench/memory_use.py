# SPDX-License-Identifier: Apache-2.0
"""Memory and launches of one call, measured apart from its time."""

import os
import re
from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

Step = Callable[[], object]

CUDA_METHOD = "torch.cuda.max_memory_allocated over the call, less what was allocated before it"
CPU_METHOD = "peak of what torch's CPU allocator gave out during the call (profiler), less what was there before it"
RESIDENT_METHOD = "peak resident memory of a process of its own, less that before the model was made"


def peak_of_call(function: Step, device: str) -> tuple[int, str]:
    """(bytes, method). Weights and inputs, which are there before the call, do not count; the result does."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before, CUDA_METHOD
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        function()
    now = most = 0
    for event in sorted(seen.profiler.kineto_results.events(), key=lambda e: e.start_ns()):
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most, CPU_METHOD


LAUNCH = re.compile(r"^(cudaLaunchKernel|cuLaunchKernel|cudaGraphLaunch|cuGraphLaunch)")


def launches(function: Step) -> int:
    """How often one call asks the GPU for work: kernels, and captured graphs as one each; copies do not count."""
    function()
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        function()
        torch.cuda.synchronize()
    return sum(1 for event in seen.profiler.kineto_results.events() if LAUNCH.match(event.name()))


def reset_peak_resident() -> None:
    """The kernel's high-water mark of this process starts anew (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")


def resident(name: str = "VmHWM") -> int:
    """Bytes: "VmHWM" the most since `reset_peak_resident`, "VmRSS" now."""
    found = re.search(rf"^{name}:\s+(\d+) kB", Path(f"/proc/{os.getpid()}/status").read_text(), re.M)
    if found is None:
        raise ValueError(f"resident: `name` must be a line of /proc/PID/status, got {name!r}")
    return 1024 * int(found[1])
