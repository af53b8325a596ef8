# SPDX-License-Identifier: Apache-2.0
"""A result as one HTML page that needs nothing else: no network, no other file, no library."""

import os
from collections.abc import Iterator
from html import escape
from pathlib import Path

from .page_charts import batch_charts, growth_charts, rooflines
from .page_style import CSS, SCRIPT
from .page_summary import summary
from .page_tables import COLUMNS, facts, methods, of_rows
from .plots import Chart, draw, number
from .schema import Result, Row

TITLES = {
    "ops": ("Ops", "Each op beside the same computation by others."),
    "model": ("Models", "Whole models, forward or forward and backward."),
    "train": ("Training", "Steps of training: forward, loss, backward, update and averaged weights."),
    "sample": ("Sampling", "Drawing images, guided."),
    "memory": ("Memory", "Peak memory."),
    "unets": ("U-Nets", "The U-Nets that the paper compares with, in the shapes of ADM and LDM-4, beside DiT-XL/2."),
    "growth": ("Growth", "How time and memory grow with batch, tokens, depth and width."),
    "plan": ("Planner", "What `dit-fast plan` computes beside what was measured here."),
}


def write(result: Result, path: Path) -> None:
    """The page of `result`, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(page(result), encoding="utf-8")
    os.replace(partial, path)


def page(result: Result) -> str:
    parts = list(_sections(result))
    links = "".join(f'<a href="#{name}">{escape(title)}</a>' for name, title, _ in parts)
    device, date = result.environment.get("device", "an unnamed device"), result.date[:10]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><title>dit_fast on {escape(device)}, {escape(date)}</title>'
        f"<style>{CSS}</style></head><body><header><h1>dit_fast on {escape(device)}</h1>"
        f'<p class="muted">Measured {escape(result.date.replace("T", " "))} by'
        f" <code>{escape(result.command)}</code></p>"
        f"{_loaded(result)}<nav>{links}</nav></header><main>{''.join(html for *_, html in parts)}</main>"
        f"<footer>{_footer()}</footer><script>{SCRIPT}</script></body></html>\n"
    )


def _sections(result: Result) -> Iterator[tuple[str, str, str]]:
    """(anchor, title, HTML) of all that the result has something for."""
    said = summary(result.rows)
    if said:
        yield "summary", "Summary", said
    charts = [*rooflines(result), *batch_charts(result.rows)]
    if charts:
        yield "plots", "Plots", f'<section id="plots"><h2>Plots</h2>{_figures(charts)}</section>'
    for kind in dict.fromkeys(row.kind for row in result.rows):
        title, about = TITLES.get(kind, (kind, ""))
        rows = [row for row in result.rows if row.kind == kind]
        figures = _figures(list(growth_charts(rows))) if kind == "growth" else ""
        yield kind, title, _section(kind, title, about, rows, figures)
    if result.absent:
        yield "absent", "Absent", (
            '<section id="absent"><h2>Absent</h2><p>Asked for, or known, and not run here.</p>'
            f'<div class="scroll"><table><tbody>{_absent(result)}</tbody></table></div></section>'
        )
    yield "environment", "Environment", _environment(result)


def _section(kind: str, title: str, about: str, rows: list[Row], figures: str) -> str:
    search = ""
    if len(rows) > 12:
        label = "Show only rows with <input type='search' placeholder='bfloat16 forward' spellcheck='false'>"
        search = f'<div class="filter"><label>{label}</label></div>'
    return (
        f'<section id="{escape(kind)}"><h2>{escape(title)}</h2><p>{escape(about)}</p>{figures}{search}'
        f"{of_rows(rows)}{methods(rows)}</section>"
    )


def _figures(charts: list[Chart]) -> str:
    return f'<div class="figures">{"".join(draw(chart) for chart in charts)}</div>'


def _absent(result: Result) -> str:
    return "".join(
        f"<tr><td>{escape(what)}</td><td>{escape(reason)}</td></tr>" for what, reason in result.absent.items()
    )


def _loaded(result: Result) -> str:
    count = sum(row.loaded for row in result.rows)
    if not count:
        return ""
    return (
        f'<p class="warn">{count} of {len(result.rows)} rows were measured while other processes used the machine. They'
        " are marked; do not rest a claim on them.</p>"
    )


def _environment(result: Result) -> str:
    about = dict(result.environment)
    copy = result.ceilings.get("copy_gbytes_per_s")
    if copy:
        about["copies memory at"] = f"{number(copy)} GB/s, read and written"
    for dtype, rate in result.ceilings.get("matmul_tflops", {}).items():
        about[f"multiplies {dtype} at"] = f"{number(rate)} TFLOP/s"
    cores = result.load.get("others_cores")
    if cores is not None:
        about["used by others before"] = f"{cores:.2f} cores"
    return f'<section id="environment"><h2>Environment</h2>{facts(about)}</section>'


def _footer() -> str:
    words = ". ".join(f"<b>{escape(c.title)}</b>: {escape(c.about)}" for c in COLUMNS)
    return f"<p>{words}.</p><p>Each row's command measures it again. A figure holds for this machine and this day.</p>"
