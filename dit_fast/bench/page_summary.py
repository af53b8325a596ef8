# SPDX-License-Identifier: Apache-2.0
"""What a run says in a few lines: this package's fastest beside the fastest alternative, case by case, losses too."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby

from .compare import uncertainty
from .page_tables import busy, cell, head, scrolling, what
from .plots import digits, number, round_ticks
from .schema import Row

COMPARED = ("ops", "model", "train", "sample")
"""Kinds whose rows of one case do the same work."""


VERDICTS = ("faster", "level", "slower", "loaded")


@dataclass(frozen=True)
class Comparison:
    """The fastest of ours and of the others; `ratio` is theirs over ours.

    "level" is within the noise (see `compare`); "loaded": another process was busy meanwhile, which proves nothing.
    """

    ours: Row
    other: Row

    @property
    def ratio(self) -> float:
        assert self.ours.ms and self.other.ms
        return self.other.ms / self.ours.ms

    @property
    def verdict(self) -> str:
        if self.ours.loaded or self.other.loaded:
            return "loaded"
        noise = math.hypot(uncertainty(self.ours), uncertainty(self.other))
        if abs(math.log(self.ratio)) <= noise:
            return "level"
        return "faster" if self.ratio > 1 else "slower"

    @property
    def words(self) -> str:
        row = self.ours
        rest = " · ".join(filter(None, (row.case, row.dtype, row.l2 and f"{row.l2} L2")))
        return f"{rest}: {number(self.ratio)}x {self.other.backend}, {self.verdict}"


def comparisons(rows: Sequence[Row]) -> list[Comparison]:
    """In the order of the rows; a case that only one side ran is none."""
    cases: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        if row.kind in COMPARED and row.ms:
            cases.setdefault(row.key()[:-1], []).append(row)
    found = []
    for case in cases.values():
        ours, others = ([r for r in case if r.ours is own] for own in (True, False))
        if ours and others:
            found.append(Comparison(*(min(side, key=lambda r: r.ms or math.inf) for side in (ours, others))))
    return found


def summary(rows: Sequence[Row]) -> str:
    """A sentence, a plot of all ratios, a table; nothing where nothing was compared."""
    found = comparisons(rows)
    if not found:
        return ""
    count = {verdict: sum(c.verdict == verdict for c in found) for verdict in VERDICTS}
    under_load = f"; {count['loaded']} were timed under load and say nothing" if count["loaded"] else ""
    sentence = (
        f"{len(found)} cases were timed beside alternatives. Against the fastest of those, this package is faster in"
        f" {count['faster']}, level (within the noise) in {count['level']} and slower in {count['slower']}{under_load}."
    )
    ratios = sorted(c.ratio for c in found if c.verdict != "loaded")
    if ratios:
        worst, middle, best = (number(ratios[i]) for i in (0, len(ratios) // 2, -1))
        sentence += f" The ratio is {worst} at worst, {middle} in the middle and {best} at best."
    return (
        f'<section id="summary"><h2>Summary</h2><p>{sentence}</p>{lanes(found)}'
        f"<details><summary>All {len(found)} comparisons</summary>{table(found)}</details></section>"
    )


def lanes(found: Sequence[Comparison]) -> str:
    """A line of dots for each op or model: how many times as fast as the fastest alternative, on one scale."""
    reach = max(1.5, *(max(c.ratio, 1 / c.ratio) for c in found)) * 1.08

    def place(ratio: float) -> float:
        return 50 + 50 * math.log(ratio) / math.log(reach)

    ticks = [t for t in round_ticks(1 / reach, reach) if t != 1] + [1.0]
    scale = "".join(f'<span style="left:{place(t):.2f}%">{number(t)}x</span>' for t in ticks)
    lines = [f'<div class="lane scale"><b></b><div>{scale}</div></div>']
    for label, group in _by_name(found):
        dots = "".join(
            f'<i class="{c.verdict}" style="left:{place(c.ratio):.2f}%" title="{escape(c.words)}"></i>' for c in group
        )
        lines.append(f'<div class="lane"><b>{escape(label)}</b><div>{dots}</div></div>')
    return (
        f'<figure class="wide"><figcaption>Speed over the fastest alternative; right of the line is faster'
        f'</figcaption><div class="lanes" role="img" aria-label="ratios, as in the table below">{"".join(lines)}</div>'
        f'<ul class="legend">{"".join(f"<li><i class={v}></i>{v}</li>" for v in VERDICTS)}</ul></figure>'
    )


def _by_name(found: Sequence[Comparison]) -> Iterator[tuple[str, list[Comparison]]]:
    def key(c: Comparison) -> str:
        return f"{c.ours.name}, {c.ours.direction}" if c.ours.kind == "ops" else \
            f"{c.ours.name}, {c.ours.kind if c.ours.direction == 'step' else c.ours.direction}"  # fmt: skip

    order = list(dict.fromkeys(map(key, found)))
    for label, group in groupby(sorted(found, key=lambda c: order.index(key(c))), key):
        yield label, list(group)


def table(found: Sequence[Comparison]) -> str:
    heads = head("what", "what was run", numeric=False) + head("ours", "our fastest", numeric=False)
    heads += head("ms", "median of a call, milliseconds", "ascending")
    heads += head("other", "the fastest other", numeric=False)
    heads += head("ms", "median of a call, milliseconds", "ascending")
    heads += head("ratio", "the other's median over ours: above 1 we are faster", "descending")
    heads += head("verdict", "level: within the noise", numeric=False)
    lines = [
        f"<tr>{what(c.ours)}<td>{escape(c.ours.backend)}</td>{cell(c.ours.ms, digits, busy(c.ours))}"
        f"<td>{escape(c.other.backend)}</td>{cell(c.other.ms, digits, busy(c.other))}{cell(c.ratio, digits)}"
        f"<td>{c.verdict}</td></tr>"
        for c in found
    ]
    return scrolling(heads, lines, "comparisons")
