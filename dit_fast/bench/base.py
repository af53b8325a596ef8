# SPDX-License-Identifier: Apache-2.0
"""The same rows on another commit, so that a claim about a change is a ratio from one run.

The other commit is checked out in a git worktree and built there. The two take turns as whole processes, each
measuring all rows; a row's ratio is the median over the turns of base's time over ours, and its noise what the turns
differ by.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from .compare import describe
from .schema import Row, read
from .session import Options

TURNS = 3


def repository() -> Path:
    """The checkout this package is in.

    Raises:
        ValueError: it is installed elsewhere.
    """
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        raise ValueError(f"bench: `--base` must be run from a git checkout of the package, got {root}")
    return root


def check_out(root: Path, revision: str, folder: Path) -> None:
    """A worktree of the revision in `folder`, with its native library built.

    Raises:
        ValueError: no such revision, it has no `dit-fast bench`, or it does not build.
    """
    added = subprocess.run(
        ["git", "-C", str(root), "worktree", "add", "--detach", str(folder), revision], capture_output=True, text=True
    )
    if added.returncode:
        raise ValueError(f"bench: `--base` must be a commit, got {revision!r}: {added.stderr.strip()}")
    if not (folder / "dit_fast" / "bench" / "runner.py").exists():
        raise ValueError(f"bench: `--base` must be a commit with dit_fast.bench, got {revision!r}")
    same = subprocess.run(["git", "-C", str(root), "diff", "--quiet", revision, "--", "csrc", "CMakeLists.txt"])
    library = root / "dit_fast" / "_native.so"
    if same.returncode == 0 and library.exists():
        shutil.copy(library, folder / "dit_fast")
        return
    build = folder / "build"
    configure = ["cmake", "-S", str(folder), "-B", str(build), "-G", "Ninja", f"-DPython_EXECUTABLE={sys.executable}"]
    for command in (configure, ["cmake", "--build", str(build), "--target", "dit_fast_native"]):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise ValueError(f"bench: `--base` must build, got from {' '.join(command)}: {done.stdout[-1000:]}")
    shutil.copy(build / "_native.so", folder / "dit_fast")


def forwarded(arguments: argparse.Namespace, options: Options) -> list[str]:
    """The options that choose rows, for another process."""
    words = list(options.kinds)
    for name in ("op", "model", "batch", "dtype", "backend", "peer", "direction"):
        for value in getattr(arguments, name) or ():
            words += [f"--{name}", str(value)]
    for name in ("rounds", "steps", "image_size"):
        value = getattr(arguments, name)
        words += [] if value is None else [f"--{name.replace('_', '-')}", str(value)]
    return [*words, "--device", options.device, *(["--allow-load"] if arguments.allow_load else [])]


def measure_in(folder: Path, words: list[str], result: Path) -> list[Row]:
    """Rows of one process that imports the package from `folder`.

    Raises:
        RuntimeError: it failed; the message has the end of what it said.
    """
    command = [sys.executable, "-m", "dit_fast", "bench", *words, "--json", str(result)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)  # -m imports from the folder first
    if done.returncode:
        raise RuntimeError(f"bench in {folder} ended with {done.returncode}: {(done.stdout + done.stderr)[-2000:]}")
    return read(result).rows


def ratios(turns: list[tuple[list[Row], list[Row]]]) -> list[tuple[Row, float, float]]:
    """(row, median of base over ours, half the range of the turns) for the rows of every turn of both."""
    tables = [({r.key(): r.ms for r in a if r.ms}, {r.key(): r.ms for r in b if r.ms}) for a, b in turns]
    found = []
    for row in turns[-1][1]:
        pairs = [(a.get(row.key()), b.get(row.key())) for a, b in tables]
        values = [old / new for old, new in pairs if old and new]
        if len(values) == len(turns):
            found.append((row, median(values), (max(values) - min(values)) / 2))
    return found


def run_base(arguments: argparse.Namespace, options: Options, turns: int = TURNS) -> int:
    """Print the ratios; the answer is the exit status, 1 where a row of ours is slower beyond noise and threshold."""
    root = repository()
    words = forwarded(arguments, options)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "base"
        try:
            check_out(root, arguments.base, folder)
            measured = []
            for turn in range(turns):
                pair = [
                    measure_in(where, words, Path(temporary) / f"{name}-{turn}.json")
                    for name, where in (("base", folder), ("here", root))
                ]
                measured.append((pair[0], pair[1]))
                print(f"turn {turn + 1} of {turns}: {len(pair[0])} and {len(pair[1])} rows", flush=True)
        finally:
            subprocess.run(["git", "-C", str(root), "worktree", "remove", "--force", str(folder)], capture_output=True)
    return report(arguments.base, ratios(measured), arguments.threshold)


def report(revision: str, found: list[tuple[Row, float, float]], threshold: float) -> int:
    worse = 0
    print(f"{'':72s}{'here ms':>11s}{revision[:12] + ' / here':>22s}{'+-':>8s}")
    for row, ratio, noise in found:
        slower = row.ours and ratio + noise < 1 - threshold
        worse += slower
        mark = "  slower" if slower else "  LOADED" if row.loaded else ""
        print(f"{describe(row):72s}{row.ms:11.3f}{ratio:22.3f}{noise:8.3f}{mark}")
    print(f"{len(found)} rows in every turn of both; above 1 this checkout is faster; {worse} regressions of ours")
    return 1 if worse else 0
