# SPDX-License-Identifier: Apache-2.0
"""How cost grows: a model's forward along batch, tokens, depth and width, one at a time, and where it bends.

A forward of T tokens of width D takes depth (12 T D^2 + 2 T^2 D + 6 D^2) multiply-adds, the paper's count. The term in
T^2 is attention's two products.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from . import model
from .recipe import Recipe, parse_model
from .schema import Row
from .session import Session

QUADRATIC = 1.5
"""A slope in log-log from which on growth is nearer to quadratic than to linear."""

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
SIZES = (16, 32, 48, 64, 96, 128)
"""Sides of the latent: 64 to 4096 tokens in patches of 2."""

DEPTHS = (1, 2, 4, 8, 16, 28)
WIDTHS = (192, 384, 768, 1152)

MODELS = {
    "cpu": {"batch": "DiT-S/8", "tokens": "DiT-S/2:depth=2", "depth": "DiT-S/4", "width": "DiT-S/4:depth=4"},
    "cuda": {"batch": "DiT-XL/2", "tokens": "DiT-XL/2", "depth": "DiT-XL/2", "width": "DiT-XL/2"},
}
"""What is varied where no model is named; a CPU is done with these in minutes."""

PEERS = ("plain",)
"""Where none is named: compiling anew for each of 25 shapes takes most of an hour."""

ROUNDS = {"cpu": 3, "cuda": 9}


@dataclass(frozen=True)
class Variant:
    """One point of an axis: a model with other numbers, a batch, a size."""

    axis: str
    value: int
    model: str
    batch: int = 1
    image_size: int = 32


def altered(name: str, **arguments: int) -> str:
    """The model's name with some arguments more: "DiT-S/2" and depth=3 give "DiT-S/2:depth=3"."""
    base, given = parse_model(name)
    return f"{base}:{','.join(f'{key}={value}' for key, value in {**given, **arguments}.items())}"


def variants(models: dict[str, str], batches: Sequence[int], image_size: int) -> Iterator[Variant]:
    """All points, axis by axis. A width has heads of 64, or XL's 16 where it is XL's."""
    for batch in batches:
        yield Variant("batch", batch, models["batch"], batch, image_size)
    for size in SIZES:
        patch = Recipe(models["tokens"], 1).shapes().patch_size
        if size % patch == 0:
            yield Variant("tokens", (size // patch) ** 2, models["tokens"], 1, size)
    for depth in DEPTHS:
        yield Variant("depth", depth, altered(models["depth"], depth=depth), 1, image_size)
    for width in WIDTHS:
        heads = 16 if width == 1152 else width // 64
        yield Variant("width", width, altered(models["width"], hidden_size=width, num_heads=heads), 1, image_size)


def rows(session: Session) -> Iterator[Row]:
    """`case` is "axis=value", `name` the model that is varied."""
    told = session.options
    for name in told.models or (None,):
        models = {axis: name or default for axis, default in MODELS[session.device].items()}
        for dtype in session.dtypes():
            for variant in variants(models, told.batches or BATCHES, told.image_size):
                if session.out_of_time():
                    return
                options = replace(
                    told, image_size=variant.image_size, peers=told.peers or PEERS, backends=told.backends or ("auto",),
                    rounds=told.rounds or ROUNDS[session.device],
                )  # fmt: skip
                recipe = Recipe(
                    variant.model, variant.batch, str(dtype).removeprefix("torch."), told.device, variant.image_size
                )
                for direction in told.directions or ("forward",):
                    for row in model.bench(replace(session, options=options), recipe, direction == "forward+backward"):
                        case = f"{variant.axis}={variant.value}"
                        yield replace(row, kind="growth", name=models[variant.axis], case=case)


@dataclass(frozen=True)
class Bend:
    """Where growth turns quadratic: at a value of the axis, or nowhere that was measured; in words, short and whole."""

    at: float | None
    short: str
    words: str


def bends(line: Sequence[Row], axis: str) -> list[Bend]:
    """Of one axis's rows: for tokens what the multiply-adds say; for every axis what was measured of our fastest."""
    found = []
    if axis == "tokens":
        at = equal_share(line[0].dims["width"])
        words = f"By the paper's count the term in T² passes half of the work at T = {at:.0f}."
        found.append(Bend(at, "T² half of the FLOPs", words))
    ours = [row for row in line if row.ours and row.ms]
    if not ours:
        return found
    by = max({row.backend for row in ours}, key=lambda name: sum(row.backend == name for row in ours))
    points = sorted((row.dims[axis], row.ms or 0.0) for row in ours if row.backend == by)
    measured, steep = steepening(points), slopes(points)
    how = f"Measured ({by}{', under load' if any(row.loaded for row in ours) else ''}): "
    if measured is not None:
        words = f"{how}from {axis} = {measured:.0f} on, the slope in log-log is above {QUADRATIC}."
        found.append(Bend(measured, f"slope > {QUADRATIC}", words))
    elif steep:
        words = f"{how}the slope in log-log is {max(steep):.2f} at its steepest and {steep[-1]:.2f} at the end."
        found.append(Bend(None, "", words))
    return found


def equal_share(width: int) -> float:
    """Tokens T where 2 T^2 D = 12 T D^2 + 6 D^2: half of a block's multiply-adds are attention's products."""
    return 3 * width + math.sqrt(9 * width**2 + 3 * width)


def slopes(points: Sequence[tuple[float, float]]) -> list[float]:
    """Of the log of the second by the log of the first, between neighbours."""
    return [
        math.log(after[1] / before[1]) / math.log(after[0] / before[0])
        for before, after in pairwise(points)
    ]


def steepening(points: Sequence[tuple[float, float]]) -> float | None:
    """From where on every slope is above QUADRATIC, read between the middles of neighbouring intervals.

    None where the last is not.
    """
    found = slopes(points)
    middles = [math.sqrt(a[0] * b[0]) for a, b in pairwise(points)]
    first = len(found)
    while first > 0 and found[first - 1] > QUADRATIC:
        first -= 1
    if first == len(found):
        return None
    if first == 0:
        return float(points[0][0])
    part = (QUADRATIC - found[first - 1]) / (found[first] - found[first - 1])
    return middles[first - 1] * (middles[first] / middles[first - 1]) ** part
