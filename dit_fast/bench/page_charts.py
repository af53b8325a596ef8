# SPDX-License-Identifier: Apache-2.0
"""Which charts a result gives: rooflines, how cost grows, and images a second by batch."""

from collections.abc import Callable, Iterator, Mapping, Sequence

from .growth import bends
from .plots import Chart, Mark, Point, Roof, Series, number
from .schema import Result, Row


def styles(rows: Sequence[Row]) -> dict[str, int]:
    """A number for each implementation, ours first and `auto` before all, the same all over the page."""
    ordered = sorted(rows, key=lambda row: (not row.ours, row.backend != "auto"))
    names = dict.fromkeys(row.backend for row in ordered)
    return {name: i for i, name in enumerate(names)}


def _series(rows: Sequence[Row], of: Mapping[str, int], x: str, y: Callable[[Row], float | None]) -> list[Series]:
    """One for each implementation; `x` is a dimension."""
    found: dict[str, list[Point]] = {}
    for row in rows:
        value = y(row)
        if value:
            label = f"{row.backend}, {x} {row.dims[x]}: {number(value)}{' (under load)' if row.loaded else ''}"
            found.setdefault(row.backend, []).append(Point(row.dims[x], value, label))
    own = {row.backend for row in rows if row.ours}
    return [Series(name, of[name], found[name], own=name in own) for name in sorted(found, key=lambda name: of[name])]


def mebibytes(row: Row) -> float | None:
    return row.peak_bytes / 2**20 if row.peak_bytes else None


def rooflines(result: Result) -> Iterator[Chart]:
    """Of each dtype: the rate of every op beside what copying and multiplying allow on this machine."""
    copy, matmul = result.ceilings.get("copy_gbytes_per_s"), result.ceilings.get("matmul_tflops", {})
    of = styles(result.rows)
    for dtype, level in matmul.items():
        points: dict[str, list[Point]] = {}
        for row in result.rows:
            if row.kind == "ops" and row.dtype == dtype and row.tflops and row.gbytes_per_s and row.l2 != "warm":
                at = row.tflops * 1e3 / row.gbytes_per_s
                words = f"{row.name} {row.direction}, {row.case}, {row.backend}: {number(row.tflops)} TFLOP/s"
                points.setdefault(row.backend, []).append(Point(at, row.tflops, words))
        if points and copy:
            yield Chart(
                f"Roofline, {dtype}", "FLOP a byte of least traffic", "TFLOP/s",
                [Series(n, of[n], p, joined=False) for n, p in sorted(points.items(), key=lambda item: of[item[0]])],
                roof=Roof(copy / 1e3, level, f"{number(copy)} GB/s, {number(level)} TFLOP/s"),
                note="The line is what this machine reached in this run: copying, left, and multiplying matrices.",
            )  # fmt: skip


def growth_charts(rows: Sequence[Row]) -> Iterator[Chart]:
    """Time and memory along each axis that was measured, for each model and dtype."""
    rows = [row for row in rows if row.kind == "growth"]
    of = styles(rows)
    lines: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        lines.setdefault((row.case.partition("=")[0], row.name, row.dtype, row.direction), []).append(row)
    for (axis, *about), line in lines.items():
        values = sorted({float(row.dims[axis]) for row in line})
        ticks = values if len(values) <= 7 else values[:: len(values) // 5]
        turns = bends(line, axis)
        marks = [Mark(turn.at, turn.short) for turn in turns if turn.at is not None]
        note = " ".join(turn.words for turn in turns)
        title = ", ".join(about)
        times = _series(line, of, axis, lambda row: row.ms)
        yield Chart(f"{title}: time by {axis}", axis, "ms", times, marks, ticks=ticks, note=note)
        memory = _series(line, of, axis, mebibytes)
        yield Chart(f"{title}: memory by {axis}", axis, "MiB", memory, ticks=ticks)


def batch_charts(rows: Sequence[Row]) -> Iterator[Chart]:
    """Images a second by batch, where more than one was measured."""
    of = styles(rows)
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        if row.kind in ("model", "train", "sample") and row.images_per_s and "batch" in row.dims:
            groups.setdefault((row.name, row.dtype, row.kind, row.direction), []).append(row)
    for (name, dtype, kind, direction), group in groups.items():
        ticks = sorted({float(row.dims["batch"]) for row in group})
        if len(ticks) > 1:
            title = f"{name}, {dtype}, {kind if direction == 'step' else direction}: images a second"
            series = _series(group, of, "batch", lambda row: row.images_per_s)
            yield Chart(title, "batch", "images/s", series, ticks=ticks)
