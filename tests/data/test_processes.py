# SPDX-License-Identifier: Apache-2.0
"""Children that fail, die or are left alone; their jobs are stand-ins, so that no VAE is loaded."""

import errno
import multiprocessing as mp
import os
import signal
import time
from pathlib import Path

import pytest

from dit_fast.data.processes import run_children


class Fake:
    """What a child does is in the class."""

    device = "cpu"

    def __init__(self, folder=None):
        self.folder = folder


class Works(Fake):
    def run(self, numbers, report):
        for _ in numbers:
            report(5)
        return [f"{number} is broken" for number in numbers if number % 3 == 0]


class Raises(Fake):
    def run(self, numbers, report):
        raise OSError(errno.ENOSPC, "No space left on device")


class Dies(Fake):
    def run(self, numbers, report):
        if numbers == [1]:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(600)


class Waits(Fake):
    def run(self, numbers, report):
        Path(self.folder, f"{os.getpid()}").touch()
        time.sleep(600)


def test_rows_and_broken_images_are_told():
    rows = []
    assert run_children(Works(), [3, 4, 6], 1, rows.append) == ["3 is broken", "6 is broken"]
    assert rows == [5] * 3


@pytest.mark.parametrize(
    "job,numbers,error,told", [(Raises, [1], OSError, "No space left"), (Dies, [0, 1], RuntimeError, "exit code -9")]
)
def test_one_that_fails_ends_the_others(job, numbers, error, told):
    before = time.monotonic()
    with pytest.raises(error, match=told):
        run_children(job(), numbers, len(numbers), lambda rows: None)
    assert time.monotonic() - before < 300 and not mp.active_children()


def test_children_end_with_a_killed_parent(tmp_path):
    parent = mp.get_context("fork").Process(target=run_children, args=(Waits(tmp_path), [0], 1, print))
    parent.start()
    deadline = time.monotonic() + 120
    while not list(tmp_path.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.05)
    (file,) = tmp_path.iterdir()
    child = int(file.name)
    assert Path(f"/proc/{child}").exists()
    parent.kill()
    parent.join()
    while alive(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(child)


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in ("Z", "X")
    except OSError:
        return False
