# SPDX-License-Identifier: Apache-2.0
"""How long a call takes.

On a GPU an op is timed by events on the stream, queued behind a pause that is longer than the host needs to launch
it, so that launches are not in the time. "cold" writes more than the L2 cache holds before each call; "warm" makes
the same call just before. Whole models, whose launches are part of what a user waits for, are timed by the host's
clock from an idle device to an idle device ("").
"""

import time
from collections.abc import Callable, Mapping
from random import Random
from typing import Protocol, runtime_checkable

import torch

Step = Callable[[], object]
TEMPERATURES = {"cpu": ("",), "cuda": ("cold", "warm")}

PAUSE_CYCLES = 6_000_000
"""About 3 ms, several times what the host needs for the slowest call timed here."""


@runtime_checkable
class TimesItself(Protocol):
    """A step in another process, which has the clock."""

    def seconds(self) -> float: ...


class HostClock:
    """Seconds of a call until the device is done."""

    def __init__(self, device: str) -> None:
        self.wait: Step = torch.cuda.synchronize if device == "cuda" else lambda: None

    def __call__(self, function: Step) -> float:
        self.wait()
        start = time.perf_counter()
        function()
        self.wait()
        return time.perf_counter() - start


class DeviceClock:
    """Seconds of a call on the current GPU, launches left out."""

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
    functions: Mapping[str, Step | TimesItself],
    rounds: int,
    device: str,
    temperature: str = "",
    warm_up: int = 3,
    pause: float = 0.0,
) -> dict[str, list[float]]:
    """Seconds of each call, the functions taking turns so that a drift of the machine touches all alike.

    Each round has an order of its own, the same in every run: a step finds the caches as the one before left them, and
    in a fixed order, wherever that begins, it would always follow the same. `pause`: seconds of sleep before each call,
    for functions with threads of their own (OpenVINO's, ONNX Runtime's), which wait for work by spinning on the
    cores of the next.
    """
    clock: Callable[[Step], float] = DeviceClock(temperature) if temperature else HostClock(device)

    def once(function: Step | TimesItself) -> float:
        return function.seconds() if isinstance(function, TimesItself) else clock(function)

    for function in functions.values():
        for _ in range(warm_up):
            once(function)
    times: dict[str, list[float]] = {name: [] for name in functions}
    for i in range(rounds):
        for name in Random(i).sample(list(functions), len(functions)):
            time.sleep(pause)
            times[name].append(once(functions[name]))
    return times
