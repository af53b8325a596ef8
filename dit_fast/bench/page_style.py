# SPDX-License-Identifier: Apache-2.0
"""How the page looks, and the little it does: text that page.py puts into it, so that it needs no other file."""

CSS = """
:root {
  color-scheme: light dark;
  --ground: #fcfcfa; --raised: #f3f3ef; --text: #1d1d1b; --muted: #5f5f59; --rule: #d9d9d2; --grid: #e8e8e2;
  --c0: #0a66b0; --c1: #c75000; --c2: #00845f; --c3: #9c3a83; --c4: #8f6400; --c5: #66665f; --c6: #2b87b8;
  --c7: #7d4a1f;
  --warn: #8a4b00; --warn-ground: #fff3dc;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #171716; --raised: #21211f; --text: #e8e8e3; --muted: #a5a59c; --rule: #3b3b37; --grid: #2b2b28;
    --c0: #62b4f2; --c1: #f2905a; --c2: #46c79f; --c3: #d98cc4; --c4: #d9ab4a; --c5: #a9a9a1; --c6: #8ccdea;
  --c7: #c99a72;
    --warn: #f3c680; --warn-ground: #35291a;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--ground); color: var(--text); overflow-wrap: break-word;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main, header, footer { max-width: 1440px; margin: 0 auto; padding: 0 24px; }
header { padding-top: 32px; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 4px; letter-spacing: -0.01em; }
h2 { font-size: 1.25rem; margin: 48px 0 4px; }
p { max-width: 72ch; margin: 4px 0 12px; }
a { color: var(--c0); }
code { font: 0.8125rem/1.45 ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
.muted, .note, figcaption + p { color: var(--muted); }
nav { display: flex; flex-wrap: wrap; gap: 4px 20px; margin: 16px 0 0; padding: 10px 0;
  border-block: 1px solid var(--rule); }
.warn { background: var(--warn-ground); color: var(--warn); padding: 10px 14px; border-radius: 6px; max-width: none; }
.badge { display: inline-block; font-size: 0.75rem; line-height: 1.2; padding: 1px 6px; border-radius: 4px;
  background: var(--warn-ground); color: var(--warn); white-space: nowrap; }
.scroll { overflow-x: auto; -webkit-overflow-scrolling: touch; border-block: 1px solid var(--rule);
  margin: 8px 0 16px; }
.scroll:focus-visible, button:focus-visible, summary:focus-visible { outline: 2px solid var(--c0);
  outline-offset: 1px; }
table { border-collapse: collapse; width: 100%; font-size: 0.875rem; font-variant-numeric: tabular-nums; }
th, td { padding: 6px 9px; text-align: left; vertical-align: top; border-bottom: 1px solid var(--grid); }
tr:last-child td { border-bottom: 0; }
th { font-weight: 600; white-space: nowrap; background: var(--raised); }
td:first-child { min-width: 13em; }
.by { min-width: 9em; max-width: 22em; }
.n { text-align: right; white-space: nowrap; }
th button { all: unset; cursor: pointer; }
th button::after { content: "\\2195"; margin-left: 4px; color: var(--muted); opacity: 0.55; }
th[aria-sort="ascending"] button::after { content: "\\2191"; opacity: 1; color: inherit; }
th[aria-sort="descending"] button::after { content: "\\2193"; opacity: 1; color: inherit; }
td small { display: block; color: var(--muted); font-size: 0.8125rem; line-height: 1.35; }
tr.ours .by b { color: var(--c0); }
.by b { font-weight: 600; }
tr:not(.ours) .by b { font-weight: 400; }
details summary { cursor: pointer; color: var(--c0); white-space: nowrap; }
details code { display: block; min-width: 24em; white-space: normal; padding: 4px 0; user-select: all; }
.filter label { display: flex; flex-wrap: wrap; gap: 4px 10px; align-items: baseline; margin: 8px 0 0;
  font-size: 0.875rem; }
.filter input { font: inherit; color: inherit; background: var(--raised); border: 1px solid var(--rule);
  border-radius: 6px;
  padding: 5px 9px; width: min(22em, 100%); }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 210px), 1fr)); gap: 4px 32px;
  margin: 12px 0; }
.facts div { display: flex; justify-content: space-between; gap: 16px; border-bottom: 1px solid var(--grid);
  padding: 3px 0; font-size: 0.875rem; }
.facts dt { color: var(--muted); white-space: nowrap; }
.facts dd { margin: 0; text-align: right; min-width: 0; overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 400px), 1fr)); gap: 24px 32px;
  margin: 12px 0; }
figure { margin: 0; min-width: 0; }
figure.wide { max-width: 860px; }
figcaption { font-weight: 600; font-size: 0.9375rem; margin-bottom: 4px; }
svg { display: block; width: 100%; height: auto; overflow: visible; }
svg text { font-size: 13px; fill: var(--muted); font-variant-numeric: tabular-nums; }
svg .name { fill: var(--text); }
svg .end { text-anchor: end; } svg .middle { text-anchor: middle; }
.grid { stroke: var(--grid); } .axis { stroke: var(--muted); fill: none; }
.roof { stroke: var(--text); stroke-width: 1.5; fill: none; } .mark { stroke: var(--muted); stroke-dasharray: 3 3; }
.even { stroke: var(--text); stroke-width: 1.25; }
.line { fill: none; stroke: currentColor; stroke-width: 1.75; }
svg g g, .legend svg { fill: currentColor; stroke: none; }
.open { fill: none; stroke: currentColor; stroke-width: 2; }
.s0 { color: var(--c0); } .own .line { stroke-width: 3; } .s1 { color: var(--c1); } .s2 { color: var(--c2); }
.s3 { color: var(--c3); } .s4 { color: var(--c4); } .s5 { color: var(--c5); } .s6 { color: var(--c6); }
  .s7 { color: var(--c7); }
.s1 .line { stroke-dasharray: 7 3; } .s2 .line { stroke-dasharray: 2 3; } .s3 .line { stroke-dasharray: 9 3 2 3; }
.s5 .line { stroke-dasharray: 4 2; }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: 2px 16px; margin: 4px 0 0; padding: 0;
  font-size: 0.8125rem; }
.legend li { display: flex; align-items: center; gap: 6px; }
.legend svg { width: 26px; flex: none; }
.lanes { margin: 8px 0; }
.lane { display: grid; grid-template-columns: 18em 1fr; gap: 0 16px; align-items: center; font-size: 0.875rem; }
.lane b { font-weight: 400; }
.lane > div { position: relative; height: 24px; margin: 0 20px; border-bottom: 1px solid var(--grid); }
.lane > div::before { content: ""; position: absolute; left: 50%; top: 0; bottom: -1px;
  border-left: 1.5px solid var(--text); }
.lane.scale > div { border: 0; color: var(--muted); font-size: 0.8125rem; }
  .lane.scale > div::before { content: none; }
.lane.scale span { position: absolute; bottom: 2px; transform: translateX(-50%); white-space: nowrap; }
.lane i { position: absolute; top: 50%; transform: translate(-50%, -50%); }
i.faster, i.level, i.slower, i.loaded { width: 10px; height: 10px; background: var(--c0); border-radius: 50%;
  flex: none; opacity: 0.85; }
i.level { background: var(--ground); border: 2px solid var(--muted); }
i.slower { background: var(--c1); border-radius: 1px; }
i.loaded { background: var(--ground); border: 2px dotted var(--warn); border-radius: 1px; }
.note { font-size: 0.8125rem; margin: 4px 0 0; }
footer { padding-block: 32px 48px; color: var(--muted); font-size: 0.875rem; }
@media (max-width: 600px) {
  main, header, footer { padding-inline: 16px; }
  header { padding-top: 20px; }
  h1 { font-size: 1.4rem; } h2 { margin-top: 36px; }
  svg text { font-size: 15px; }
  .lane { grid-template-columns: 1fr; } .lane > div { height: 20px; }
  th, td { padding: 6px 8px; }
  td:first-child { min-width: 11em; }
}
@media print { .filter, nav { display: none; } .scroll { overflow: visible; } }
"""

SCRIPT = """
for (const table of document.querySelectorAll("table.sorts")) {
  const body = table.tBodies[0], original = [...body.rows];
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.querySelector("button")?.addEventListener("click", () => {
    const numeric = head.classList.contains("n"), now = head.getAttribute("aria-sort");
    const first = head.dataset.first || "ascending", second = first === "ascending" ? "descending" : "ascending";
    const next = now === null ? first : now === first ? second : null;
    heads.forEach(other => other.removeAttribute("aria-sort"));
    if (next === null) { body.append(...original); return; }
    head.setAttribute("aria-sort", next);
    const sign = next === "ascending" ? 1 : -1;
    const value = row => numeric ? parseFloat(row.cells[column].dataset.v) : row.cells[column].textContent;
    const compare = (a, b) => numeric
      ? (isNaN(a) ? 1 : 0) - (isNaN(b) ? 1 : 0) || sign * (a - b) || 0
      : sign * a.localeCompare(b, "en", {numeric: true});
    body.append(...[...original].sort((a, b) => compare(value(a), value(b))));
  }));
  const input = table.closest("section").querySelector(".filter input");
  input?.addEventListener("input", () => {
    const words = input.value.toLowerCase().split(/\\s+/).filter(Boolean);
    for (const row of original) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every(word => text.includes(word));
    }
  });
}
"""
"""Tables sort by a click on a head: one way, the other way, as they were. Empty cells stay last."""
