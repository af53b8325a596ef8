# SPDX-License-Identifier: Apache-2.0
"""A SIGTERM, as clusters send it before they take a machine away, lets the step end instead of the process."""

import signal
import threading
from types import FrameType
from typing import Any


class Interrupt:
    """Within this context a SIGTERM only sets `came`. (Outside of the main thread Python lets nobody listen.)"""

    def __init__(self) -> None:
        self.came = False
        self._before: Any = None
        self._listens = threading.current_thread() is threading.main_thread()

    def __enter__(self) -> "Interrupt":
        if self._listens:
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        if self._listens:
            signal.signal(signal.SIGTERM, signal.SIG_DFL if self._before is None else self._before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.came = True
