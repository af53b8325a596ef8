# SPDX-License-Identifier: Apache-2.0
"""Limits on what a kernel may use, from budgets.toml, and what breaks them."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import groupby
from pathlib import Path

from dit_fast.kernels import Kernel, table

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it

FILE = Path(__file__).with_name("budgets.toml")


@dataclass(frozen=True)
class Budget:
    """One line of the file; its comment there explains the fields."""

    kernel: str
    registers: int
    arch: str = "*"
    shared: int = 0
    matrix: int = 0
    spills: int = 0
    why: str = ""

    def covers(self, kernel: Kernel) -> bool:
        return fnmatchcase(kernel.name, self.kernel) and fnmatchcase(kernel.arch, self.arch)

    def exceeded(self, kernel: Kernel) -> list[str]:
        used = [(field, getattr(kernel, field), getattr(self, field)) for field in ("registers", "shared", "spills")]
        over = [f"{field} {value} is more than {limit}" for field, value, limit in used if value > limit]
        if kernel.matrix < self.matrix:
            over.append(f"matrix {kernel.matrix} is less than {self.matrix}")
        return over


def load(kind: str, path: Path = FILE) -> list[Budget]:
    """The lines for kernels of one kind, "triton" or "cuda"."""
    return [Budget(**line) for line in tomllib.loads(path.read_text())[kind]]


def check(kernels: Sequence[Kernel], budgets: Sequence[Budget]) -> list[str]:
    """What is wrong, as a person needs it to mend it: the kernels' rows, and the line to put or to take away."""
    wrong: list[str] = []
    missing: list[Kernel] = []
    covered: dict[Budget, list[Kernel]] = {budget: [] for budget in budgets}
    for kernel in kernels:
        budget = next((budget for budget in budgets if budget.covers(kernel)), None)
        if budget is None:
            missing.append(kernel)
            continue
        covered[budget].append(kernel)
        over = budget.exceeded(kernel)
        if over:
            fitting = fit([kernel])
            wrong.append(f"{'; '.join(over)}:\n{table([kernel])}\nlimits: {line(budget)}\nas it is: {line(fitting)}")
    if missing:
        lines = "\n".join(line(budget) for budget in suggest(missing))
        wrong.append(f"no line in {FILE.name} covers\n{table(missing)}\nlines to put:\n{lines}")
    for budget, rows in covered.items():
        if not rows:
            wrong.append(f"stale, covers no kernel that an earlier line does not: take away\n{line(budget)}")
        elif budget.spills and not any(kernel.spills for kernel in rows):
            wrong.append(f"stale, nothing spills any more: take `spills` and `why` out of\n{line(budget)}")
        if budget.spills and not budget.why:
            wrong.append(f"`spills` needs its reason, `why`:\n{line(budget)}")
    return wrong


def suggest(kernels: Iterable[Kernel]) -> Iterator[Budget]:
    """A line for each kernel and dtype (its first template argument)."""

    def pattern(kernel: Kernel) -> str:
        base, _, arguments = kernel.name.partition("<")
        return f"{base}<{arguments.split(',')[0]}*" if "," in arguments else kernel.name

    for name, rows in groupby(sorted(kernels, key=pattern), pattern):
        yield fit(list(rows), name)


def fit(kernels: Sequence[Kernel], name: str = "") -> Budget:
    """The tightest line for these kernels, registers in the steps of 8 in which hardware gives them out."""
    spills = max(kernel.spills for kernel in kernels)
    return Budget(
        kernel=name or kernels[0].name,
        registers=min(255, -(-max(kernel.registers for kernel in kernels) // 8) * 8),
        shared=max(kernel.shared for kernel in kernels),
        matrix=min(kernel.matrix for kernel in kernels),
        spills=spills,
        why="?" if spills else "",
    )


def line(budget: Budget) -> str:
    """As it stands in the file."""
    values = {"kernel": budget.kernel, "registers": budget.registers}
    values |= {k: v for k, v in vars(budget).items() if k not in values and v != getattr(Budget, k)}
    cells = [f'{k} = "{v}"' if isinstance(v, str) else f"{k} = {v}" for k, v in values.items()]
    return f"  {{ {', '.join(cells)} }},"
