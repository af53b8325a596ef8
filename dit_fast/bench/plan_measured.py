# SPDX-License-Identifier: Apache-2.0
"""Steps of training on one GPU, from the result files of benchmarks: what a plan rests on."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .recipe import Recipe
from .schema import Row, read

DTYPES = {"float32": "float32", "bf16": "bfloat16", "pure_bf16": "pure_bf16"}
"""What `Row.dtype` says of a training step in each precision of `TrainConfig`."""

COMMITTED = Path(__file__).parents[2] / "benchmarks" / "results"
"""Where a checkout of the project keeps its results; an installed package has none."""


@dataclass(frozen=True)
class Measured:
    """Steps of one model on one GPU.

    Attributes:
        batches: milliseconds by images a step, in rising order of images.
        peaks: bytes that a step takes beyond what is there before it, by images, as far as measured.
        copy: GB/s of a copy on that GPU, read and written bytes together.
        source: the file, its date, its device and what ran.
    """

    batches: dict[int, float]
    peaks: dict[int, int]
    copy: float
    source: str

    def step_ms(self, batch: int) -> tuple[float, str]:
        """Of `batch` images, and how that follows from what was measured."""
        known = sorted(self.batches)
        if batch in self.batches:
            return self.batches[batch], f"measured at {batch} images"
        if len(known) == 1:
            only = known[0]
            return self.batches[only] * batch / only, f"in proportion to {only} images, the only batch measured"
        below = [b for b in known if b < batch][-2:]
        above = [b for b in known if b > batch][:2]
        low, high = (below[-1], above[0]) if below and above else (below if below else above)
        slope = (self.batches[high] - self.batches[low]) / (high - low)
        ms = self.batches[low] + slope * (batch - low)
        if below and above:
            return ms, f"between {low} and {high} images measured"
        least = self.batches[known[0]] * batch / known[0]  # a line through noise may cross zero
        return max(ms, least) if batch < known[0] else ms, f"extrapolated from {low} and {high} images measured"


def default_files() -> list[Path]:
    return sorted(COMMITTED.glob("*.json"))


def find(
    files: Iterable[Path], gpu: str, model: str, precision: str, image_size: int = 32, explicit: bool = False
) -> Measured | None:
    """Our fastest steps of `model` on a device whose name contains `gpu`; the newest file that has some.

    Args:
        explicit: the files were named by the user: one that is no result of a benchmark is an error.

    Raises:
        ValueError: as said.
    """
    best: tuple[str, Measured] | None = None
    tokens = Recipe(model, 1, image_size=image_size).dims()["tokens"]
    for path in files:
        try:
            result = read(path)
        except (ValueError, KeyError, TypeError) as error:
            if explicit:
                expected = "results of `dit-fast bench train`"
                raise ValueError(f"plan: `--results` must be {expected}, got {path}: {error}") from None
            continue
        if gpu.lower() not in result.environment.get("device", "").lower():
            continue
        rows = [row for row in result.rows if _is_step(row, model, precision, tokens)]
        if rows and (best is None or result.date > best[0]):
            source = f"{path.name}, {result.date[:10]}, {result.environment['device']}"
            best = result.date, _measured(rows, result.ceilings["copy_gbytes_per_s"], source)
    return best[1] if best else None


def _is_step(row: Row, model: str, precision: str, tokens: int) -> bool:
    return (
        row.kind == "train" and row.direction == "step" and row.ours and row.name == model and not row.loaded
        and row.dtype == DTYPES[precision] and row.ms is not None and "batch" in row.dims
        and row.dims.get("tokens") == tokens
    )  # fmt: skip


def _measured(rows: Sequence[Row], copy: float, source: str) -> Measured:
    """Of one implementation, that which is fastest at its largest batch."""
    largest = max(row.dims["batch"] for row in rows)
    fastest = min((row for row in rows if row.dims["batch"] == largest), key=lambda row: row.ms or 0.0).backend
    chosen = sorted((row for row in rows if row.backend == fastest), key=lambda row: row.dims["batch"])
    return Measured(
        {row.dims["batch"]: row.ms for row in chosen if row.ms is not None},
        {row.dims["batch"]: row.peak_bytes for row in chosen if row.peak_bytes is not None},
        copy, f"{source}, backend {fastest}",
    )  # fmt: skip
