# SPDX-License-Identifier: Apache-2.0
"""Charts as SVG text for the page: no library, no network, colours from the page's style sheet.

Text stays text, lines take the colours of the page in light and dark, and a series is told from another by its marker
and its dashes as well as by its colour. Every point says its numbers when pointed at.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

WIDTH, HEIGHT = 480, 320
LEFT, RIGHT, TOP, BOTTOM = 62, 14, 12, 46
MARKERS = ("circle", "square", "triangle", "diamond", "plus", "down", "ring", "cross")
"""As many as there are colours in the style sheet; later series begin again."""


@dataclass(frozen=True)
class Point:
    """`label` is shown when the point is pointed at."""

    x: float
    y: float
    label: str


@dataclass(frozen=True)
class Series:
    """Points, `joined` by a line; `style` is its marker and colour, the same in every chart of a page; `own`: ours."""

    name: str
    style: int
    points: Sequence[Point]
    joined: bool = True
    own: bool = False


@dataclass(frozen=True)
class Mark:
    """A vertical line at x, with words beside it."""

    x: float
    label: str


@dataclass(frozen=True)
class Roof:
    """The most a machine can reach: min(slope * x, level)."""

    slope: float
    level: float
    label: str


@dataclass(frozen=True)
class Chart:
    """What is drawn; both axes are logarithmic. `ticks`: where the x axis has numbers, if not where they are round."""

    title: str
    x: str
    y: str
    series: Sequence[Series]
    marks: Sequence[Mark] = ()
    roof: Roof | None = None
    ticks: Sequence[float] = ()
    note: str = ""


@dataclass(frozen=True)
class Scale:
    """From values to places, logarithmically."""

    low: float
    high: float
    start: float
    end: float
    ticks: Sequence[float] = field(default_factory=tuple)

    def __call__(self, value: float) -> float:
        part = math.log(value / self.low) / math.log(self.high / self.low)
        return self.start + part * (self.end - self.start)


def digits(value: float) -> str:
    """Three of them, without an exponent where a reader would not want one."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    if 1e-3 <= abs(value) < 1e7:
        return f"{value:,.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"
    return f"{value:.2g}"


def number(value: float) -> str:
    """At most three digits: without the zeros at the end."""
    text = digits(value)
    return text.rstrip("0").rstrip(".") if "." in text and "e" not in text else text


def round_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 of each decade, or, where that would be many, powers of ten."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    all_of = [digit * 10.0**decade for decade in decades for digit in (1, 2, 5)]
    inside = [tick for tick in all_of if low * 0.999 <= tick <= high * 1.001]
    if len(inside) <= 7:
        return inside
    step = math.ceil(len(decades) / 6)
    return [10.0**decade for decade in decades[::step] if low * 0.999 <= 10.0**decade <= high * 1.001]


def scale(values: Sequence[float], start: float, end: float, ticks: Sequence[float] = ()) -> Scale:
    """Room for all values and a little more."""
    low, high = min(values), max(values)
    if high < 2 * low:  # a flat line is drawn flat, and not as noise blown up
        low, high = low / 1.5, high * 1.5
    room = (high / low) ** 0.05
    low, high = low / room, high * room
    return Scale(low, high, start, end, ticks or round_ticks(low, high))


def marker(kind: str, x: float, y: float) -> str:
    """A shape of about 8 units around (x, y)."""
    shapes = {
        "circle": f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4"/>',
        "ring": f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.4" class="open"/>',
        "square": f'<rect x="{x - 3.5:.1f}" y="{y - 3.5:.1f}" width="7" height="7"/>',
    }
    paths = {
        "triangle": "m0-4.6 4.4 8h-8.8z", "down": "m0 4.6 4.4-8h-8.8z", "diamond": "m0-5 5 5-5 5-5-5z",
        "plus": "m-1.4-4.4h2.8v3h3v2.8h-3v3h-2.8v-3h-3v-2.8h3z", "cross": "m-4-4 8 8m0-8-8 8",
    }  # fmt: skip
    if kind in shapes:
        return shapes[kind]
    look = "open" if kind == "cross" else "filled"
    return f'<path class="{look}" d="M{x:.1f} {y:.1f}{paths[kind]}"/>'


def _axes(chart: Chart, across: Scale, up: Scale) -> list[str]:
    parts = []
    for tick in up.ticks:
        y = up(tick)
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 7}" y="{y + 4:.1f}" class="end">{number(tick)}</text>')
    for tick in across.ticks:
        x = across(tick)
        parts.append(f'<path class="grid" d="M{x:.1f} {TOP}V{HEIGHT - BOTTOM}"/>')
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 17}" class="middle">{number(tick)}</text>')
    parts.append(f'<path class="axis" d="M{LEFT} {TOP}V{HEIGHT - BOTTOM}H{WIDTH - RIGHT}"/>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 8}" class="middle name">{escape(chart.x)}</text>')
    turned = f"translate(13 {(TOP + HEIGHT - BOTTOM) / 2}) rotate(-90)"
    parts.append(f'<text transform="{turned}" class="middle name">{escape(chart.y)}</text>')
    return parts


def _roof(roof: Roof, across: Scale, up: Scale) -> list[str]:
    """Clipped to the chart by where the slope meets its floor, and drawn from there."""
    bend = roof.level / roof.slope
    start = max(across.low, up.low / roof.slope)
    places = [(start, roof.slope * start)] if start < bend else [(across.low, roof.level)]
    if across.low < bend < across.high:
        places.append((bend, roof.level))
    last = min(roof.slope * across.high, roof.level)
    places.append((across.high, last))
    line = "L".join(f"{across(x):.1f} {up(y):.1f}" for x, y in places)
    label = f'<text x="{WIDTH - RIGHT - 4}" y="{up(last) - 6:.1f}" class="end">{escape(roof.label)}</text>'
    return [f'<path class="roof" d="M{line}"/>', label]


def _marks(marks: Sequence[Mark], across: Scale) -> list[str]:
    parts = []
    for i, mark in enumerate(marks):
        if across.low <= mark.x <= across.high:
            x = across(mark.x)
            dx, side = (-5, "end") if x > (LEFT + WIDTH) / 2 else (5, "start")
            parts.append(f'<path class="mark" d="M{x:.1f} {TOP}V{HEIGHT - BOTTOM}"/>')
            parts.append(
                f'<text x="{x + dx:.1f}" y="{TOP + 12 + 15 * i}" class="{side}">{escape(mark.label)}</text>'
            )
    return parts


def _series(series: Series, across: Scale, up: Scale) -> list[str]:
    style = series.style % len(MARKERS)
    parts = [f'<g class="s{style}{" own" if series.own else ""}">']
    points = sorted(series.points, key=lambda point: point.x)
    if series.joined and len(points) > 1:
        line = "L".join(f"{across(p.x):.1f} {up(p.y):.1f}" for p in points)
        parts.append(f'<path class="line" d="M{line}"/>')
    for p in points:
        shape = marker(MARKERS[style], across(p.x), up(p.y))
        parts.append(f"<g><title>{escape(p.label)}</title>{shape}</g>")
    return [*parts, "</g>"]


def draw(chart: Chart) -> str:
    """A figure in HTML: the chart, its title and its legend; empty where there is nothing to draw."""
    body = _body(chart)
    if not body:
        return ""
    note = f'<p class="note">{escape(chart.note)}</p>' if chart.note else ""
    return (
        f"<figure><figcaption>{escape(chart.title)}</figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(chart.title)}">{body}</svg>'
        f"{legend(chart.series)}{note}</figure>"
    )


def standalone(chart: Chart, style: str) -> str:
    """The same as an SVG file with a style sheet of its own: the title above, the legend below."""
    top, line = 26, 20
    height = HEIGHT + top + line * -(-len(chart.series) // 2) + 6
    parts = [f'<text x="{LEFT}" y="18" class="name">{escape(chart.title)}</text>']
    parts.append(f'<g transform="translate(0 {top})">{_body(chart)}</g>')
    for i, series in enumerate(chart.series):
        x, y = LEFT + i % 2 * (WIDTH - LEFT) / 2, top + HEIGHT + 6 + line * (i // 2)
        parts.append(
            f'<g transform="translate({x} {y})">{_key(series)}<text x="34" y="10">{escape(series.name)}</text></g>'
        )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" role="img"'
        f' aria-label="{escape(chart.title)}"><style>{escape(style)}</style>{"".join(parts)}</svg>\n'
    )


def _body(chart: Chart) -> str:
    points = [p for s in chart.series for p in s.points if p.x > 0 and p.y > 0]
    if not points:
        return ""
    ys = [p.y for p in points] + ([chart.roof.level] if chart.roof else [])
    across = scale([p.x for p in points], LEFT, WIDTH - RIGHT, chart.ticks)
    up = scale(ys, HEIGHT - BOTTOM, TOP)
    parts = _axes(chart, across, up)
    if chart.roof:
        parts += _roof(chart.roof, across, up)
    for series in reversed(chart.series):  # ours are first, and so on top
        parts += _series(series, across, up)
    return "".join(parts + _marks(chart.marks, across))


def _key(series: Series) -> str:
    """Its marker on its line, 26 x 12."""
    style = series.style % len(MARKERS)
    line = '<path class="line" d="M1 6H25"/>' if series.joined else ""
    return f'<g class="s{style}{" own" if series.own else ""}">{line}<g>{marker(MARKERS[style], 13, 6)}</g></g>'


def legend(series: Sequence[Series]) -> str:
    """Each series with its marker."""
    keys = (f'<svg viewBox="0 0 26 12" aria-hidden="true">{_key(s)}</svg>{escape(s.name)}' for s in series)
    return f'<ul class="legend">{"".join(f"<li>{key}</li>" for key in keys)}</ul>'
