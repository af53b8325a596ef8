# SPDX-License-Identifier: Apache-2.0
"""A run on one page: `out/summary.md`, with the curves in `out/summary.png`, made from the log when the run ends."""

from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean, median
from typing import Any

from dit_fast.files import whole_or_not

from .files import LOG_FILE, read_log
from .metrics import memory_name
from .watch import RunInfo, Watcher

CURVES = {"loss": "log", "images_per_second": "linear", "grad_norm": "log", "lr": "linear"}
"""Number of a record to the scale of its axis."""


class Summary(Watcher):
    """Covers the whole run, also what came before it was taken up again."""

    def end(self, reason: str, info: RunInfo) -> None:
        log = read_log(info.out / LOG_FILE)
        records = [entry for entry in log if entry["event"] == "record"]
        drawn = bool(records) and find_spec("matplotlib") is not None
        if drawn:
            save_curves(info.out / "summary.png", records)
        with whole_or_not(info.out / "summary.md") as partial:
            partial.write_text(page(reason, info, log, drawn))


def page(reason: str, info: RunInfo, log: list[dict[str, Any]], drawn: bool) -> str:
    """The text. `drawn`: there is a picture of the curves."""
    config = info.config
    records = [entry for entry in log if entry["event"] == "record"]
    rows = {
        "model": f"{config.model}{''.join(f', {key} {value}' for key, value in config.model_args.items())}",
        "parameters": f"{info.parameters:,}",
        "one image": f"{info.macs_per_image / 1e9:.4g} Gflops as the paper counts (multiply-adds), twice as many FLOPs",
        "data": config.data or "given in Python",
        "objective": config.objective,
        "recipe": f"batch {config.batch_size}, AdamW lr {config.lr:g}, betas {config.betas[0]:g} {config.betas[1]:g}, "
        f"weight decay {config.weight_decay:g}, EMA {config.ema:g}, {config.precision}",
        "hardware": f"{info.world_size} x {info.device}",
        "ended": reason,
        **(results(info, records) if records else {}),
    }
    lines = [f"# {info.out.name}", "", "| | |", "|---|---|", *(f"| {key} | {cell(rows[key])} |" for key in rows), ""]
    if drawn:
        lines += ["![loss, images a second, gradient norm and learning rate](summary.png)", ""]
    elif records:
        lines += ["No curves: they need matplotlib (pip install 'dit_fast[train]').", ""]
    drawings = [entry for entry in log if entry["event"] == "samples"]
    if drawings:
        last = drawings[-1]
        lines += [f"Drawn with the averaged weights after step {last['step']:,}:", ""]
        lines += [f"![samples]({last['file']})", ""]
    saved = [entry for entry in log if entry["event"] == "checkpoint"]
    if saved:
        lines += ["| checkpoint after step | seconds | |", "|---|---|---|"]
        lines += [f"| {e['step']:,} | {e['seconds']:.1f} | {cell(e['error'] or e['path'])} |" for e in saved[-10:]]
        lines.append("")
    return "\n".join(lines)


def results(info: RunInfo, records: list[dict[str, Any]]) -> dict[str, str]:
    """What the records come to. Rates are medians over them; numbers of a log may be the text "nan"."""
    last = records[-1]
    tail = records[-max(1, len(records) // 10):]  # fmt: skip
    rate, tflops = (median(float(r[name]) for r in records) for name in ("images_per_second", "tflops"))
    mfu = [float(r["mfu"]) for r in records if r["mfu"] is not None]
    kind = "cpu" if info.device == "cpu" else "cuda"
    return {
        "steps": f"{last['step']:,} of {info.config.steps:,}, {last['images']:,} images",
        "time": str(timedelta(seconds=round(last["seconds"]))),
        "loss": f"{fmean(float(r['loss']) for r in tail):.4f} over the last {len(tail)} records",
        "speed": f"{rate:.4g} images/s, {tflops:.4g} TFLOP/s" + (f", MFU {median(mfu):.1%}" if mfu else ""),
        memory_name(kind): f"{max(r['memory_bytes'] for r in records) / 2**30:.2f} GiB",
    }


def cell(text: str) -> str:
    """Text that stays in its cell of a table."""
    return " ".join(str(text).replace("|", "\\|").split())


def save_curves(path: Path, records: list[dict[str, Any]]) -> None:
    """Four axes against the step; what was never known is left out."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 6), dpi=110)
    for axis, (name, scale) in zip(figure.subplots(2, 2).flat, CURVES.items(), strict=True):
        points = [(r["step"], float(r[name])) for r in records if r[name] is not None]
        steps, values = [step for step, _ in points], [value for _, value in points]
        axis.plot(steps, values, linewidth=1, marker="." if len(points) < 30 else "")
        axis.set(xlabel="step", ylabel=name.replace("_", " "))
        if scale == "log" and any(value > 0 for value in values):
            axis.set_yscale("log")
    figure.tight_layout()
    with whole_or_not(path) as partial:
        figure.savefig(partial, format="png")
