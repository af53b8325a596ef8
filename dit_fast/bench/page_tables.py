# SPDX-License-Identifier: Apache-2.0
"""The tables of the page: a kind's rows, the summary, lists of facts."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from .plots import digits, number
from .schema import Row


@dataclass(frozen=True)
class Column:
    """`value` is what a row sorts by and `show` its text; a column that no row of a table fills is left out."""

    title: str
    about: str
    value: Callable[[Row], float | None]
    show: Callable[[float], str] = digits
    first: str = "descending"


def gflops(row: Row) -> float | None:
    """1e9 multiply-adds an image, the paper's unit, of a forward."""
    if row.tflops is None or not row.images_per_s or row.direction != "forward":
        return None
    return row.tflops * 1e3 / row.images_per_s / 2


def percent(value: float) -> str:
    return f"{100 * value:.0f}%"


def size(value: float) -> str:
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if value >= scale:
            return f"{digits(value / scale)} {unit}"
    return f"{value:.0f} B"


COLUMNS = (
    Column("ms", "median of a call, milliseconds", lambda r: r.ms, digits, "ascending"),
    Column("spread", "distance of the quartiles over the median", lambda r: r.spread, percent, "ascending"),
    Column("x eager", "eager PyTorch's median over this one's: above 1 is faster", lambda r: r.ratio_to_eager),
    Column("images/s", "images of the batch over the median", lambda r: r.images_per_s),
    Column("Gflops", "1e9 multiply-adds of one image's forward, the paper's count", gflops),
    Column("GB/s", "least traffic of the case over the median", lambda r: r.gbytes_per_s),
    Column("TFLOP/s", "useful operations over the median, two a multiply-add", lambda r: r.tflops),
    Column("of limit", "share of this machine's own ceiling: what it copies or multiplies at most, measured at the"
           " start of the run", lambda r: r.share, percent),
    Column("memory", "peak memory of a call; how it was measured is said below the table", lambda r: r.peak_bytes, size,
           "ascending"),
    Column("launches", "GPU kernels of one call", lambda r: r.launches, number, "ascending"),
    Column("error", "relative distance from the same computation in float64", lambda r: r.error, lambda v: f"{v:.1e}",
           "ascending"),
    Column("eager's", "eager PyTorch's error in the same dtype", lambda r: r.error_eager, lambda v: f"{v:.1e}",
           "ascending"),
)  # fmt: skip


def head(title: str, about: str, first: str = "", numeric: bool = True) -> str:
    """A head that sorts; `first` is the direction that it sorts in at first."""
    marks = f' class="n" data-first="{first}"' if numeric else ""
    return f'<th scope="col"{marks} title="{escape(about)}"><button type="button">{escape(title)}</button></th>'


def cell(value: float | None, show: Callable[[float], str], extra: str = "") -> str:
    if value is None:
        return '<td class="n"></td>'
    return f'<td class="n" data-v="{value:.9g}">{escape(show(value))}{extra}</td>'


def what(row: Row) -> str:
    """What was run, in two lines."""
    rest = " · ".join(filter(None, (row.case, row.dtype, row.direction, row.l2 and f"{row.l2} L2")))
    return f"<td>{escape(row.name)}<small>{escape(rest)}</small></td>"


def busy(row: Row) -> str:
    if not row.loaded:
        return ""
    cores = "" if row.others_cores is None else f"other processes used {row.others_cores:.2f} cores meanwhile"
    return f' <span class="badge" title="{cores}">under load</span>'


def of_rows(rows: Sequence[Row]) -> str:
    """All that was measured of one kind, in the order it was."""
    columns = [c for c in COLUMNS if any(c.value(row) is not None for row in rows)]
    heads = head("what", "what was run", numeric=False) + head("by", "the implementation", numeric=False)
    heads += "".join(head(c.title, c.about, c.first) for c in columns) + '<th scope="col">again</th>'
    lines = []
    for row in rows:
        note = f"<small>{escape(row.note)}</small>" if row.note else ""
        cells = what(row) + f'<td class="by"><b>{escape(row.backend)}</b>{note}</td>'
        for c in columns:
            extra = busy(row) if c.title == "ms" else ""
            if c.title == "of limit" and row.share_of:
                extra = f"<small>{escape(row.share_of)}</small>"
            cells += cell(c.value(row), c.show, extra)
        command = ""
        if row.repeat:
            command = f"<details><summary>command</summary><code>{escape(row.repeat)}</code></details>"
        lines.append(f"<tr{' class=ours' if row.ours else ''}>{cells}<td>{command}</td></tr>")
    return scrolling(heads, lines)


def scrolling(heads: str, lines: Iterable[str], about: str = "measurements") -> str:
    """A table that scrolls by itself where the page is narrow."""
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{about}"><table class="sorts"><thead><tr>{heads}'
        f"</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def methods(rows: Sequence[Row]) -> str:
    """How the memory of these rows was measured."""
    found = dict.fromkeys(row.memory_method for row in rows if row.memory_method and row.peak_bytes is not None)
    return "".join(f'<p class="note">Memory: {escape(method)}.</p>' for method in found)


def facts(pairs: Mapping[str, Any]) -> str:
    items = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(str(v))}</dd></div>" for k, v in pairs.items())
    return f'<dl class="facts">{items}</dl>'
