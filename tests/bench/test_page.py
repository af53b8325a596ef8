# SPDX-License-Identifier: Apache-2.0
"""The page: what it says, that it stands alone, and how it looks in a browser on a phone and on a desk."""

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from dit_fast.bench.page import page, write
from dit_fast.bench.page_summary import comparisons, summary
from dit_fast.bench.page_tables import COLUMNS
from dit_fast.bench.plots import Chart, Point, Roof, Series, digits, draw, number, round_ticks, scale

from . import browser
from .result import made_up, ops

VOID = {"meta", "link", "input", "path", "circle", "rect", "br"}


class Balanced(HTMLParser):
    """Fails at an end that closes another element than the last one open."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag, attributes):
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attributes):
        pass


def test_elements_are_closed_and_words_escaped():
    text = page(made_up())
    parser = Balanced()
    parser.feed(text)
    parser.close()
    assert parser.open == []
    assert "A CPU with &lt;brackets&gt;" in text
    assert "&lt;pinned &amp; named&gt;" in text
    assert "not installed &amp; &lt;missing&gt;" in text


def test_it_names_every_row_its_command_and_what_is_loaded_or_absent(tmp_path):
    result = made_up()
    write(result, tmp_path / "deep" / "page.html")
    text = (tmp_path / "deep" / "page.html").read_text()
    for row in result.rows:
        assert row.repeat in text
    assert text.count("under load</span>") >= sum(row.loaded for row in result.rows)
    assert "3 of 32 rows were measured while other processes used the machine" in text
    assert "ops: flash-attn" in text
    assert not list(tmp_path.rglob("*.partial"))


def test_nothing_in_it_refers_outside():
    text = page(made_up())
    assert {value[:1] for value in re.findall(r'(?:src|href)="([^"]*)"', text)} == {"#", "d"}
    assert not re.search(r"""(?:src|href)=(?!["](#|data:,["]))""", text)
    assert not re.search(r"https?:|url\(|@import|fetch\(|XMLHttp", text)


def test_losses_are_told_as_plainly_as_wins():
    found = comparisons(made_up().rows)
    by = {(c.ours.name, c.ours.dtype): c for c in found if c.ours.kind == "ops"}
    assert {k: c.verdict for k, c in by.items()} == {
        ("adaln", "float32"): "faster", ("adaln", "bfloat16"): "slower", ("attention", "float32"): "level",
        ("linear_gelu", "float32"): "loaded",
    }  # fmt: skip
    assert by["adaln", "float32"].other.backend == "compile"
    assert by["adaln", "float32"].ratio == 1.5
    text = summary(made_up().rows)
    assert "faster in 1, level (within the noise) in 3 and slower in 1" in text
    assert "; 1 were timed under load and say nothing." in text
    assert "The ratio is 0.8 at worst, 0.998 in the middle and 1.5 at best." in text  # 1 with the loaded one


def test_a_result_without_peers_or_ceilings_still_has_a_page():
    alone = replace(made_up(), rows=[row for row in ops() if row.ours], ceilings={}, absent={}, load={})
    text = page(alone)
    assert "Summary" not in text
    assert "Roofline" not in text
    assert text.count("<tr class=ours>") == 4


def test_a_column_that_no_row_fills_is_left_out():
    text = page(replace(made_up(), rows=[row for row in ops() if row.name == "adaln"]))
    heads = re.findall(r"<button type=\"button\">([^<]+)</button>", text)
    assert "TFLOP/s" not in heads
    assert "GB/s" in heads
    assert len({c.title for c in COLUMNS}) == len(COLUMNS)


@pytest.mark.parametrize(
    "value, three, short",
    [(1.8, "1.80", "1.8"), (0.05, "0.0500", "0.05"), (1234.6, "1,235", "1,235"), (100, "100", "100"), (0, "0", "0")],
)
def test_numbers_have_three_digits(value, three, short):
    assert digits(value) == three
    assert number(value) == short


def test_ticks_are_round_and_inside():
    assert round_ticks(0.9, 12) == [1, 2, 5, 10]
    assert round_ticks(1e-3, 1e9) == [1e-3, 1, 1e3, 1e6, 1e9]


def test_a_point_is_where_its_values_are():
    across = scale([1, 100], 0, 100)
    assert across(10) == pytest.approx(50)
    assert 0 < across(1) < across(100) < 100
    text = draw(Chart("t", "x", "y", [Series("a", 0, [Point(1, 1, "one"), Point(100, 100, "all")])]))
    line = re.search(r'class="line" d="M([\d.]+) ([\d.]+)L([\d.]+) ([\d.]+)"', text)
    x0, y0, x1, y1 = map(float, line.groups())
    assert x0 < x1
    assert y0 > y1  # up is more


def test_the_roof_bends_where_copying_meets_multiplying():
    points = [Point(1, 1, "a"), Point(100, 2, "b")]
    text = draw(Chart("t", "x", "y", [Series("a", 0, points, joined=False)], roof=Roof(0.5, 5, "5")))
    places = re.search(r'class="roof" d="M([^"]+)"', text)[1].split("L")
    xs, ys = zip(*(map(float, place.split()) for place in places), strict=True)
    assert len(places) == 3
    assert ys[0] > ys[1] == ys[2]
    dot = re.search(r'cx="([\d.]+)"', text)
    assert xs[1] == pytest.approx((float(dot[1]) + xs[2]) / 2, abs=60)  # 10 lies halfway between 1 and 100


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    program = browser.find()
    if program is None:
        pytest.skip(f"no browser: none of {', '.join(browser.NAMES)} is installed")
    path = tmp_path_factory.mktemp("page") / "page.html"
    write(made_up(), path)
    started = browser.Browser(program)
    yield started, path
    started.close()


@pytest.mark.parametrize("width, height", [(390, 844), (1440, 900)])
@pytest.mark.parametrize("dark", [False, True])
def test_it_fits_a_phone_and_a_desk(chromium, tmp_path, width, height, dark):
    page, path = chromium
    page.open(path, width, height, dark)
    assert page.run("document.documentElement.scrollWidth") <= width
    beyond = """[...document.querySelectorAll("body *")].filter(e => !e.closest(".scroll") && !e.closest("svg")
        && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 80))"""
    assert page.run(beyond) == []
    small = """Math.min(...[...document.querySelectorAll("svg[role=img]")].map(
        svg => 13 * svg.getBoundingClientRect().width / svg.viewBox.baseVal.width))"""
    assert page.run(small) >= 9
    page.screenshot(tmp_path / "page.png")
    assert (tmp_path / "page.png").read_bytes().startswith(b"\x89PNG")
    ground = "rgb(23, 23, 22)" if dark else "rgb(252, 252, 250)"
    assert page.run("getComputedStyle(document.body).backgroundColor") == ground
    assert set(page.requests) == {path.as_uri()}
    assert page.problems == []


def test_tables_sort_and_filter(chromium):
    page, path = chromium
    page.open(path, 1440, 900)
    column = "[...document.querySelectorAll('#ops tbody tr:not([hidden])')].map(r => parseFloat(r.cells[2].dataset.v))"
    click = "document.querySelectorAll('#ops th button')[2].click()"
    asked = page.run(column)
    page.run(click)
    assert page.run(column) == sorted(asked) != asked
    assert page.run("document.querySelectorAll('#ops th')[2].ariaSort") == "ascending"
    page.run(click)
    assert page.run(column) == sorted(asked, reverse=True)
    page.run(click)
    assert page.run(column) == asked
    rates = "[...document.querySelectorAll('#ops tbody tr')].map(r => r.cells[6].dataset.v ?? null)"
    for _ in range(2):  # adaln has no TFLOP/s: its empty cells stay last both ways
        page.run("document.querySelectorAll('#ops th button')[6].click()")
        assert page.run(rates)[-6:] == [None] * 6
    page.run("""const input = document.querySelector('#growth input, #ops input');
        input.value = 'batch=16 eager'; input.dispatchEvent(new Event('input'))""")
    assert page.run("document.querySelectorAll('#growth tbody tr:not([hidden])').length") == 1


def test_text_is_readable_in_both_schemes(chromium):
    """WCAG AA: 4.5 to 1 for text on its ground, 3 to 1 for lines and markers."""
    page, path = chromium
    luminance = """c => { const [r, g, b] = c.match(/[\\d.]+/g).map(v => (v /= 255) <= 0.03928 ? v / 12.92
        : ((v + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b; }"""
    ratio = f"""(() => {{ const light = {luminance};
        const probe = document.body.appendChild(document.createElement("p"));
        const colour = name => {{ probe.style.color = `var(${{name}})`; return light(getComputedStyle(probe).color); }};
        const of = (a, b) => {{ const [x, y] = [colour(a), colour(b)].sort((p, q) => q - p);
            return (x + 0.05) / (y + 0.05); }};
        return [of("--text", "--ground"), of("--muted", "--ground"), of("--muted", "--raised"),
            of("--warn", "--warn-ground"), of("--c0", "--ground"),
            ...[...Array(8).keys()].map(i => 1.5 * of(`--c${{i}}`, "--ground"))]; }})()"""
    for dark in (False, True):
        page.open(path, 1440, 900, dark)
        assert min(page.run(ratio)) >= 4.5
