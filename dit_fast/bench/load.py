# SPDX-License-Identifier: Apache-2.0
"""Whether something else uses the machine: a timing under another process's load can be several times off.

On a CPU: the busy time of this process's cores (/proc/stat) less its own and that of the children it drives
(/proc/PID/stat). On a GPU: its utilisation and its processes as the driver tells them (pynvml or nvidia-smi), asked
while this process leaves it idle. Where neither can be read, the answer is None, and nothing is claimed.
"""

import os
import subprocess
import time
from pathlib import Path

LIMIT = 0.15
"""Cores' worth of others' time from which on a timing counts as loaded: the clock of /proc counts in 1/100 s, and an
idle machine's daemons stay below a hundredth."""

GPU_LIMIT = 5.0
"""Percent of utilisation of a GPU that we leave idle."""

TICK = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100


def busy_seconds(proc: Path = Path("/proc")) -> float | None:
    """Seconds that the cores this process may use have been busy, all processes together."""
    try:
        lines = (proc / "stat").read_text().splitlines()
    except OSError:
        return None
    ours = {f"cpu{i}" for i in os.sched_getaffinity(0)}
    ticks = 0
    for line in lines:
        name, *values = line.split()
        if name in ours:
            user, nice, system, _idle, _wait, irq, soft, steal = (int(v) for v in values[:8])
            ticks += user + nice + system + irq + soft + steal  # stolen time is a neighbour's too
    return ticks / TICK


def own_seconds(pids: list[int], proc: Path = Path("/proc")) -> float:
    """Seconds of processor time that these processes and their finished children have used; one that ended counts 0."""
    ticks = 0
    for pid in pids:
        try:
            text = (proc / str(pid) / "stat").read_text()
        except OSError:
            continue
        ticks += sum(int(v) for v in text.rsplit(")", 1)[1].split()[11:15])  # utime, stime, cutime, cstime
    return ticks / TICK


class LoadMonitor:
    """Others' use of the cores between `start` and `stop`."""

    def __init__(self) -> None:
        self.children: list[int] = []
        self._begin: tuple[float, float | None, float] | None = None

    def _now(self) -> tuple[float, float | None, float]:
        return time.perf_counter(), busy_seconds(), own_seconds([os.getpid(), *self.children])

    def start(self) -> None:
        self._begin = self._now()

    def stop(self) -> float | None:
        """Cores that others used since `start`; None where the system does not say, or the time is too short to."""
        assert self._begin is not None, "stop without start"
        (t0, busy0, own0), (t1, busy1, own1) = self._begin, self._now()
        if busy0 is None or busy1 is None or t1 - t0 < 10 / TICK:
            return None
        return max(0.0, (busy1 - busy0) - (own1 - own0)) / (t1 - t0)

    def sample(self, seconds: float = 1.0) -> float | None:
        """Cores that others use now."""
        self.start()
        time.sleep(seconds)
        return self.stop()


def is_loaded(cores: float | None, device: str = "cpu") -> bool:
    """On a GPU's machine the cores only launch: what others do on them is recorded, and does not mark a row."""
    return device == "cpu" and cores is not None and cores > LIMIT


def gpu_utilisation() -> float | None:
    """Percent, of the first visible GPU, as the driver says; None where it cannot be asked."""
    command = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
        return float(done.stdout.split()[0])
    except (OSError, subprocess.TimeoutExpired, IndexError, ValueError):
        return None


def idle_gpu(tries: int = 4) -> float | None:
    """The least utilisation of a few looks: the driver's figure is of the last second, and a process of ours may have
    just ended."""
    seen = []
    for _ in range(tries):
        percent = gpu_utilisation()
        if percent is None:
            return None
        seen.append(percent)
        if percent <= GPU_LIMIT:
            break
        time.sleep(1)
    return min(seen)


def refuse_if_busy(device: str, monitor: LoadMonitor, allowed: bool) -> dict[str, object]:
    """What the machine does before the first timing, for the result.

    Raises:
        ValueError: others use it, and that was not allowed.
    """
    cores = monitor.sample()
    found: dict[str, object] = {"others_cores": cores, "limit": LIMIT, "allowed": allowed}
    busy = f"{cores:.2f} cores" if is_loaded(cores, device) else ""
    if device == "cuda":
        found["gpu_percent"] = percent = idle_gpu()
        busy = f"{percent:.0f}% of the GPU" if percent is not None and percent > GPU_LIMIT else busy
    if busy and not allowed:
        raise ValueError(
            f"the machine must be idle to be timed, got other processes using {busy}; wait, or `--allow-load`,"
            " which marks the rows"
        )
    return found
