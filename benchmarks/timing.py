# SPDX-License-Identifier: Apache-2.0
"""How long a call takes, and how fast this machine copies memory.

On a GPU a call is timed by events on the stream, queued behind a pause that is longer than the host needs to launch
it, so that launches are not in the time. "cold" writes more than the L2 cache holds before each call; "warm" makes
the same call just before.
"""

import time
from collections.abc import Callable

import torch

Step = Callable[[], object]
TEMPERATURES = {"cpu": ("",), "cuda": ("cold", "warm")}

PAUSE_CYCLES = 6_000_000
"""About 3 ms, several times what the host needs for the slowest call timed here."""


class HostClock:
    """Seconds of a call on the CPU."""

    def __init__(self, temperature: str) -> None:
        assert temperature == ""

    def __call__(self, function: Step) -> float:
        start = time.perf_counter()
        function()
        return time.perf_counter() - start


class DeviceClock:
    """Seconds of a call on the current GPU."""

    def __init__(self, temperature: str) -> None:
        self.warm = temperature == "warm"
        size = 4 * torch.cuda.get_device_properties().L2_cache_size
        self.flush = torch.empty(size, dtype=torch.uint8, device="cuda")
        self.start, self.end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def __call__(self, function: Step) -> float:
        if self.warm:
            function()
        else:
            self.flush.fill_(1)
        torch.cuda._sleep(PAUSE_CYCLES)
        self.start.record()
        function()
        self.end.record()
        torch.cuda.synchronize()
        return self.start.elapsed_time(self.end) * 1e-3


def time_alternating(
    functions: dict[str, Step], rounds: int, device: str, temperature: str = ""
) -> dict[str, list[float]]:
    """Seconds of each call, the functions taking turns so that a drift of the machine touches all alike."""
    clock = DeviceClock(temperature) if device == "cuda" else HostClock(temperature)
    for function in functions.values():
        for _ in range(3):
            clock(function)
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            times[name].append(clock(function))
    return times


def copy_bandwidth(device: str) -> float:
    """GB/s, read and written bytes together, of a copy far larger than the caches: the ceiling of this machine."""
    size = (2 << 30) if device == "cuda" else (256 << 20)
    source = torch.zeros(size, dtype=torch.uint8, device=device).random_()
    target = torch.empty_like(source)
    times = time_alternating({"copy": lambda: target.copy_(source)}, 9, device, TEMPERATURES[device][0])
    return 2 * size / sorted(times["copy"])[4] / 1e9
