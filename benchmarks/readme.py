# SPDX-License-Identifier: Apache-2.0
"""python -m benchmarks readme: writes README.md's tables and plots of measurements anew, from the result files.

A table stands between `<!-- benchmarks RESULT KIND -->` and `<!-- end -->`: RESULT is a file in benchmarks/results,
KIND the kind of its rows. A test checks that every table is what its file says.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from dit_fast.bench.page_charts import batch_charts, growth_charts
from dit_fast.bench.page_style import CSS
from dit_fast.bench.plots import standalone
from dit_fast.bench.schema import Result, Row, read

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PLOTS = {
    "h200-forward.svg": ("nvidia-h200-end-to-end.json", "model", "batch"),
    "h200-train.svg": ("nvidia-h200-end-to-end.json", "train", "batch"),
    "cpu-tokens.svg": ("cpu-amd-epyc-avx2-end-to-end.json", "growth", "tokens"),
    "cpu-width.svg": ("cpu-amd-epyc-avx2-end-to-end.json", "growth", "width"),
}
"""Files in docs, of a result's rows of a kind along an axis: images a second by batch, or how time grows."""
MARKED = re.compile(r"(<!-- benchmarks (\S+) (\w+) -->\n)(.*?)(<!-- end -->)", re.S)


def current(text: str, results: Path = RESULTS) -> str:
    """The text with every table as its result file has it.

    Raises:
        ValueError: a table names a file that is not there, or one without rows of its kind.
    """
    return MARKED.sub(lambda found: f"{found[1]}{table(results / found[2], found[3])}\n{found[5]}", text)


def table(path: Path, kind: str) -> str:
    if not path.exists():
        raise ValueError(f"readme: a table must name a file of {path.parent.name}, got {path.name!r}")
    result = read(path)
    rows = [row for row in result.rows if row.kind == kind and row.l2 in ("", "cold")]
    if not rows:
        raise ValueError(f"readme: {path.name} must have rows of the kind {kind!r}, got none")
    return f"{times(rows)}\n\n{where(result, path, rows)}"


def times(rows: Sequence[Row]) -> str:
    """A line a case: the time of each, and how many times its first implementation of ours is as fast as the others."""
    cases: list[tuple[tuple[str, ...], dict[str, Row]]] = []
    for row in rows:
        key: tuple[str, ...] = (row.name, row.case, row.dtype, row.direction)
        last = next((found for k, found in reversed(cases) if k == key), None)
        if last is None or row.backend in last:  # timed again, beside others: a line of its own
            last = {}
            cases.append((key, last))
        last[row.backend] = row
    names = sorted(dict.fromkeys(row.backend for row in rows), key=lambda name: not is_ours(rows, name))
    lines = ["| | " + " | ".join(names) + " |", "|---" + "|---:" * len(names) + "|"]
    for key, found in cases:
        own = next((found[name] for name in names if name in found and found[name].ours), None)
        cells = [cell(found.get(name), own) for name in names]
        lines.append(f"| {', '.join(key)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def is_ours(rows: Sequence[Row], name: str) -> bool:
    return any(row.ours for row in rows if row.backend == name)


def cell(row: Row | None, own: Row | None) -> str:
    """Time, and for others the ratio; memory where that is what was measured."""
    if row is None:
        return ""
    mark = "†" if row.loaded else ""
    if row.ms is None:
        return f"{(row.peak_bytes or 0) / 2**20:.0f} MiB{mark}"
    ratio = "" if own is None or own is row or not own.ms else f" ({row.ms / own.ms:.2f}x)"
    time = f"{row.ms:.3g} ms" if row.ms < 1000 else f"{row.ms / 1000:.3g} s"
    return f"{time}{ratio}{mark}"


def where(result: Result, path: Path, rows: Sequence[Row]) -> str:
    about = result.environment
    threads = f", {about['threads']} threads ({about['instruction set']})" if "threads" in about else ""
    loaded = " †: other processes used the machine meanwhile." if any(row.loaded for row in rows) else ""
    return (
        f"*{about['device']}{threads}, torch {about['torch']}, {result.date[:10]}, commit {about['commit'][:9]};"
        f" medians of one alternating run, in brackets the time over ours:"
        f" [{path.name}](benchmarks/results/{path.name}).{loaded}*"
    )


def plot(path: Path, kind: str, axis: str) -> str:
    """An SVG file."""
    rows = [row for row in read(path).rows if row.kind == kind]
    if kind == "growth":
        charts = growth_charts(rows)
    else:
        once = {(row.backend, row.dims["batch"]): row for row in reversed(rows)}  # the first that was measured
        charts = batch_charts(list(once.values()))
    return standalone(next(chart for chart in charts if chart.x == axis), CSS)


def main() -> int:
    readme = ROOT / "README.md"
    for name, (result, kind, axis) in PLOTS.items():
        (ROOT / "docs" / name).write_text(plot(RESULTS / result, kind, axis))
    before = readme.read_text()
    after = current(before)
    readme.write_text(after)
    print(f"{readme.name}: {len(MARKED.findall(after))} tables, {'changed' if after != before else 'current'}")
    return 0
