# SPDX-License-Identifier: Apache-2.0
"""What changed between two results, with noise taken into account.

The median of n calls of which the middle half spreads over a share s is uncertain by about 1.96 * 1.25 * (s / 1.35) /
sqrt(n): a normal's quartiles are 1.35 standard deviations apart, and a median scatters 1.25 times as much as a mean. A
change counts where the two medians' intervals, combined as independent, leave it on one side of no change.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from .schema import Result, Row, read

QUARTILES, MEDIAN, CONFIDENCE = 1.349, 1.2533, 1.96


@dataclass(frozen=True)
class Change:
    """One measurement in both results: `ratio` is time after over time before; below 1 is faster."""

    before: Row
    after: Row
    ratio: float
    noise: float

    def verdict(self, threshold: float) -> str:
        """"slower" and "faster" beyond the noise and the threshold; "loaded": a busy machine proves nothing."""
        if self.before.loaded or self.after.loaded:
            return "loaded"
        change = math.log(self.ratio)
        if abs(change) <= self.noise or abs(self.ratio - 1) <= threshold:
            return "same"
        return "slower" if change > 0 else "faster"


def uncertainty(row: Row) -> float:
    """Half the interval of a row's median, as a share of it; without a spread nothing is certain."""
    if row.spread is None or row.rounds < 2:
        return math.inf
    return CONFIDENCE * MEDIAN * row.spread / QUARTILES / math.sqrt(row.rounds)


def compare(before: Iterable[Row], after: Iterable[Row]) -> tuple[list[Change], list[Row], list[Row]]:
    """Changes of the rows that are in both; those only before; those only after."""
    first = {row.key(): row for row in before if row.ms}
    second = {row.key(): row for row in after if row.ms}
    changes = [
        Change(old, new, (new.ms or 0) / (old.ms or 1), math.hypot(uncertainty(old), uncertainty(new)))
        for old, new in ((row, second[key]) for key, row in first.items() if key in second)
    ]
    gone = [row for key, row in first.items() if key not in second]
    new = [row for key, row in second.items() if key not in first]
    return changes, gone, new


def other_machine(a: Result, b: Result) -> list[str]:
    """What of the environment differs that makes times incomparable, or worth knowing."""
    keys = [k for k in (*a.environment, *b.environment) if k != "commit"]
    return [
        f"{key}: {a.environment.get(key, 'absent')} -> {b.environment.get(key, 'absent')}"
        for key in dict.fromkeys(keys)
        if a.environment.get(key) != b.environment.get(key)
    ]


def describe(row: Row) -> str:
    return " ".join(filter(None, (row.kind, row.name, row.case, row.dtype, row.direction, row.l2, row.backend)))


def print_comparison(path_a: Path, path_b: Path, threshold: float) -> int:
    """The answer is the exit status: 1 where a row of ours is slower beyond noise and threshold, or memory grew so."""
    a, b = read(path_a), read(path_b)
    for line in other_machine(a, b):
        print(f"differs: {line}")
    changes, gone, new = compare(a.rows, b.rows)
    worse = 0
    print(f"{'':72s}{'before ms':>11s}{'after ms':>11s}{'after/before':>14s}{'noise':>8s}")
    for change in sorted(changes, key=lambda c: -c.ratio):
        verdict = change.verdict(threshold)
        print(f"{describe(change.before):72s}{change.before.ms:11.3f}{change.after.ms:11.3f}{change.ratio:14.3f}"
              f"{change.noise:8.1%}  {verdict}")  # fmt: skip
        worse += verdict == "slower" and change.after.ours
        old, grown = change.before.peak_bytes, change.after.peak_bytes
        if old and grown and grown > old * (1 + threshold):
            print(f"{'':72s}memory {old / 2**20:.1f} -> {grown / 2**20:.1f} MiB")
            worse += change.after.ours
    for title, rows in (("only before", gone), ("only after", new)):
        for row in rows:
            print(f"{title}: {describe(row)}")
    if not changes:
        raise ValueError(f"bench: `--compare` needs rows that are in both, got none in {path_a} and {path_b}")
    print(f"{len(changes)} rows compared, {worse} regressions of ours past {threshold:.0%}")
    return 1 if worse else 0
