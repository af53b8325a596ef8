# SPDX-License-Identifier: Apache-2.0
"""PTX and assembly stand in three headers only; everything else is C++ that a CPU can run too."""

import re

from tests.host_exec.build import ROOT

ALLOWED = {"common/cuda/ptx.cuh", "common/cuda/ptx_sm90.cuh", "host_exec/context.h"}


def test_no_asm_elsewhere():
    sources = [p for p in (ROOT / "csrc").rglob("*") if p.suffix in {".h", ".cuh", ".cpp", ".cu"}]
    found = {str(p.relative_to(ROOT / "csrc")) for p in sources if re.search(r"\b(__)?asm(__)?\b", p.read_text())}
    assert found == ALLOWED
