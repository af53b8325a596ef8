# SPDX-License-Identifier: Apache-2.0
"""The package installs without a compiler, runs on its Python backends and says so; the README's table is current."""

import configparser
import os
import re
import subprocess
import sys
from pathlib import Path

from dit_fast.cli.info import markdown_table
from dit_fast.ops._core import native

ROOT = Path(__file__).parents[2]


def test_without_a_compiler_it_installs_and_runs_and_says_so(tmp_path):
    environment = {**os.environ, "CXX": "/bin/false", "CC": "/bin/false"}
    build = [sys.executable, "-m", "pip", "-v", "wheel", "--no-deps", "--no-build-isolation", "-w", str(tmp_path), "."]
    source = tmp_path / "source"
    subprocess.run(["git", "clone", "-q", str(ROOT), str(source)], check=True)
    for name in ("setup.py", "pyproject.toml", "CMakeLists.txt"):  # as they are now, committed or not
        (source / name).write_bytes((ROOT / name).read_bytes())
    done = subprocess.run(build, cwd=source, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the native library was NOT built" in done.stdout + done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert "-py3-none-" in wheel.name
    subprocess.run([sys.executable, "-m", "zipfile", "-e", str(wheel), str(tmp_path / "site")], check=True)
    code = (
        "import torch, dit_fast; from dit_fast import ops; from dit_fast.models import DiT\n"
        "assert '/site/' in dit_fast.__file__\n"
        "model = DiT(input_size=4, hidden_size=64, depth=1, num_heads=1)\n"
        "print(model(torch.zeros(1, 4, 4, 4), torch.zeros(1), torch.zeros(1, dtype=torch.long)).shape)\n"
        "from dit_fast.cli import main; main(['info'])\n"
        "ops.use_backend('cpu'); x = torch.zeros(1, 2, 8)\n"
        "try: ops.adaln(x, x[:, 0], x[:, 0])\n"
        "except ops.BackendUnavailable as error: print(error)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(tmp_path / "site")}, capture_output=True,
        text=True, cwd=tmp_path, check=True,
    )  # fmt: skip
    assert "torch.Size([1, 8, 4, 4])" in run.stdout and "running on the Python backends" in run.stdout
    assert "adaln on cpu: backend reference; not cpu (the native library is not built" in run.stderr  # said, once
    assert "adaln: backend 'cpu' cannot run here: the native library is not built" in run.stdout


def exported_by_torch_2_11() -> dict[str, set[str]]:
    """By library; configparser, since the file is a list of names under headings."""
    parser = configparser.ConfigParser(allow_no_value=True)
    parser.optionxform = str
    parser.read(Path(__file__).with_name("torch_2_11_symbols.txt"))
    return {library: set(parser[library]) for library in parser.sections()}


def dynamic_symbols(library: Path) -> dict[str, str]:
    """Symbol to nm's letter: U undefined, w undefined and weak, others defined."""
    listed = subprocess.run(["nm", "-D", library], capture_output=True, text=True, check=True).stdout
    return {line.split()[-1].partition("@")[0]: line.split()[-2] for line in listed.splitlines()}


def test_the_native_library_stays_on_the_stable_abi(library=native.LIBRARY):
    """No C++ symbol of torch and no libpython: one file for every torch >= 2.11, with and without CUDA, and Python."""
    symbols, exported = dynamic_symbols(library), exported_by_torch_2_11()
    assert not [s for s in symbols if re.search(r"^_Z\w*?(3c10|2at|5torch)", s) and symbols[s] in "Uw"]
    assert not [s for s in symbols if re.match(r"_?Py[A-Z_]", s)]
    assert not [s for s in symbols if re.match(r"(__)?cu[A-Zd]", s)], "the CUDA runtime is linked in, and hidden"
    needed = {s for s in symbols if re.match(r"(aoti_)?torch_", s)}
    assert "aoti_torch_library_impl" in needed or "torch_library_impl" in needed
    assert needed <= exported["libtorch_cpu"] | exported["libtorch_cuda"], "not in torch 2.11"
    weak = {s for s in needed if symbols[s] == "w"}
    assert weak == needed - exported["libtorch_cpu"], "weak is what a torch without CUDA lacks, and nothing else"

    elf = subprocess.run(["readelf", "-WdS", library], capture_output=True, text=True, check=True).stdout
    has_kernels = ".nv_fatbin" in elf
    assert weak == ({"aoti_torch_get_current_cuda_stream"} if has_kernels else set())
    libraries = set(re.findall(r"NEEDED.*\[(\w+)", elf))
    assert "libtorch" in libraries
    assert not [name for name in libraries if re.match(r"libpython|libtorch_|libc10|libcuda|libnv", name)]


def test_the_readme_table_is_generated_from_the_specs():
    readme = (ROOT / "README.md").read_text()
    (table,) = re.findall(r"<!-- dit-fast info --markdown -->\n(.*?)\n<!-- end -->", readme, re.S)
    assert table == markdown_table()


def test_the_five_lines_of_the_readme_run():
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert len([line for line in example.splitlines() if line.strip()]) == 5
    exec(compile(example, "README.md", "exec"), {})
