# SPDX-License-Identifier: Apache-2.0
"""Every script in examples/ runs, as it stands; before and after differ by two lines and give the same losses."""

import contextlib
import difflib
import io
import re
import runpy
import sys
from functools import cache
from pathlib import Path
from unittest import mock

import pytest
import torch

from dit_fast.ops import use_backend
from dit_fast.ops._core import OPS

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
SCRIPTS = sorted(
    path.stem
    for path in EXAMPLES.glob("*.py")
    if not path.stem.startswith("their_") and "argparse" not in path.read_text()  # one with arguments has its own test
)


@cache
def output(name):
    """What a script prints, in this process, since imports cost the most."""
    printed = io.StringIO()
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stdout(printed))
        stack.enter_context(torch.random.fork_rng([]))
        stack.enter_context(use_backend("auto"))
        stack.enter_context(mock.patch.object(sys, "path", [str(EXAMPLES), str(ROOT), *sys.path]))
        stack.enter_context(mock.patch.object(sys, "argv", [name]))
        for op in OPS.values():
            stack.enter_context(mock.patch.dict(op.backends))
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    return printed.getvalue()


@pytest.mark.parametrize("name", SCRIPTS)
def test_runs(name):
    assert output(name)


PAIRS = [name.removesuffix("_before") for name in SCRIPTS if name.endswith("_before")]


@pytest.mark.parametrize("name", PAIRS)
def test_two_lines_differ(name):
    before, after = ((EXAMPLES / f"{name}_{when}.py").read_text().splitlines() for when in ("before", "after"))
    code = [[line for line in lines if line.strip()] for lines in (before, after)]
    changed = [line for line in difflib.ndiff(*code) if line[0] in "+-"]
    body = [line for line in changed if '"""' not in line]
    assert len(body) == 2 and all(line.startswith("+ ") for line in body), changed
    assert "import dit_fast" in body[0] and "dit_fast.patch(" in body[1]


def test_training_gives_the_same_losses():
    losses = [list(map(float, re.findall(r"loss ([\d.]+)", output(f"train_{when}")))) for when in ("before", "after")]
    assert len(losses[0]) == len(losses[1]) == 4 and losses[0][-1] < losses[0][0]
    assert losses[1] == pytest.approx(losses[0], rel=1e-2)
    assert "blocks.* x2" in output("train_after")
