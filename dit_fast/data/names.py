# SPDX-License-Identifier: Apache-2.0
"""Many strings as one piece of memory."""

from collections.abc import Iterable

import numpy as np


class Names:
    """An immutable list of strings without NUL, as paths are.

    A million Python strings would be copied into every worker of a DataLoader as soon as their reference counts are
    touched; two arrays are shared.
    """

    def __init__(self, strings: Iterable[str]) -> None:
        self._from(b"".join(string.encode(errors="surrogateescape") + b"\0" for string in strings))

    @classmethod
    def from_bytes(cls, blob: bytes) -> "Names":
        """From `blob` of another: each string with a NUL after it."""
        names = cls.__new__(cls)
        names._from(blob)
        return names

    def _from(self, blob: bytes) -> None:
        self.blob = blob
        self.ends = np.flatnonzero(np.frombuffer(blob, np.uint8) == 0)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> str:
        start = int(self.ends[index - 1]) + 1 if index else 0
        return self.blob[start : int(self.ends[index])].decode(errors="surrogateescape")
