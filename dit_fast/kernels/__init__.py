# SPDX-License-Identifier: Apache-2.0
"""What each compiled kernel uses: registers, shared memory, spills, matrix instructions. No GPU needed.

`dit-fast info --kernels` prints it; tests/kernels/budgets.toml holds it to limits.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from dit_fast import env

from .cubin import Kernel, ptx_architectures, read_cubins, read_library
from .names import short_name

__all__ = ["Kernel", "ptx_architectures", "read_cubins", "read_library", "short_name", "table", "triton_kernels"]


def triton_kernels(
    ops: Sequence[str] = (), cache: Path | None = None, progress: Callable[[str], None] = lambda line: None
) -> list[Kernel]:
    """Compile the Triton kernels of these ops (all, if none is named) for each architecture, and read them.

    Args:
        cache: a folder that keeps what was compiled, so that the next time only what changed is.
        progress: called with a line for each op that is done.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        child = [sys.executable, "-m", f"{__name__}.compile_triton", name, *ops, "--cache", str(cache or folder / "c")]
        with (folder / "stderr").open("w+") as errors:
            process = subprocess.Popen(
                child, stdout=subprocess.PIPE, stderr=errors, text=True, env=env.without_triton_interpret()
            )
            assert process.stdout is not None
            for line in process.stdout:
                progress(line.rstrip())
            if process.wait():
                errors.seek(0)
                raise RuntimeError(f"Triton kernels do not compile:\n{errors.read()}")
        index = json.loads((folder / "index.json").read_text())
        kernels = read_cubins([folder / entry["file"] for entry in index])
        assert len(kernels) == len(index)
        return [
            replace(kernel, name=entry["name"], shared=entry["shared"])
            for kernel, entry in zip(kernels, index, strict=True)
        ]


COLUMNS = {
    "reg": "registers", "shared": "shared", "stack": "stack", "LDL": "local_loads", "STL": "local_stores",
    "MMA": "matrix", "cp.async": "cp_async", "TMA": "tma", "BAR": "barriers", "instr": "instructions",
}  # fmt: skip


def table(kernels: Sequence[Kernel]) -> str:
    """One line a kernel and architecture; the header's names are those of the instructions counted."""
    lines = [" ".join(f"{title:>8s}" for title in ("arch", *COLUMNS)) + "  kernel"]
    for kernel in kernels:
        cells = [kernel.arch, *(str(getattr(kernel, field)) for field in COLUMNS.values())]
        lines.append(" ".join(f"{cell:>8s}" for cell in cells) + f"  {kernel.name}")
    return "\n".join(lines)
