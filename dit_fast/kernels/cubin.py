# SPDX-License-Identifier: Apache-2.0
"""What compiled kernels use, read from their machine code with NVIDIA's cuobjdump and nvdisasm; no GPU needed.

Starting a disassembler costs 0.4 s whatever its input, so the code of all kernels of one architecture is laid end to
end and disassembled at once.
"""

import re
import shutil
import struct
import subprocess
import tempfile
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from .names import short_name

INSTRUCTION_BYTES = 16
"""Of every architecture since Volta."""

TMA = ("UTMALDG", "UTMASTG", "UTMAREDG", "UBLKCP", "UBLKRED")


@dataclass(frozen=True)
class Kernel:
    """One kernel as compiled for one architecture. What it uses a thread or a block, then counts of instructions."""

    name: str
    arch: str
    registers: int
    shared: int
    """Bytes a block. Of a CUDA kernel the static ones only; of a Triton kernel all."""
    stack: int
    """Bytes a thread."""
    local_loads: int
    local_stores: int
    """Traffic with local memory: spilled registers, and arrays that are not held in registers."""
    matrix: int
    """Tensor core instructions: mma, wgmma, tcgen05.mma."""
    cp_async: int
    tma: int
    barriers: int
    """Of a whole block."""
    instructions: int

    @property
    def spills(self) -> int:
        return self.local_loads + self.local_stores


def read_library(path: Path) -> list[Kernel]:
    """All kernels in a shared object, for each architecture; none where it was built without CUDA."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [tool("cuobjdump"), "-xelf", "all", str(path.resolve())], cwd=folder, capture_output=True, text=True
        )
        if done.returncode and "does not contain device code" not in done.stdout + done.stderr:
            raise RuntimeError(f"cuobjdump cannot read {path}: {done.stdout}{done.stderr}")
        return read_cubins(sorted(Path(folder).glob("*.cubin")))


def ptx_architectures(path: Path) -> set[str]:
    """Architectures whose PTX a shared object carries, from which a driver compiles for GPUs yet unknown."""
    listed = subprocess.run([tool("cuobjdump"), "-lptx", str(path)], capture_output=True, text=True).stdout
    return set(re.findall(r"\.(sm_\w+)\.ptx", listed))


def read_cubins(paths: Sequence[Path]) -> list[Kernel]:
    """All kernels of files named `<anything>.<architecture>.cubin`, in that order."""
    code: dict[str, bytearray] = {}
    starts: dict[str, list[int]] = {}
    found: list[tuple[str, str, int, dict[str, int]]] = []  # architecture, symbol, its number there, resources
    for path in paths:
        arch = path.name.split(".")[-2]
        blob, places = code.setdefault(arch, bytearray()), starts.setdefault(arch, [])
        resources = _resources(path)
        for symbol, text in _kernel_code(path.read_bytes()):
            found.append((arch, symbol, len(places), resources[symbol]))
            places.append(len(blob))
            blob += text
    counts = {arch: _count(arch, bytes(blob), starts[arch]) for arch, blob in code.items() if blob}
    return [_kernel(short_name(symbol), arch, use, counts[arch][i]) for arch, symbol, i, use in found]


def _kernel(name: str, arch: str, use: dict[str, int], count: Counter[str]) -> Kernel:
    return Kernel(
        name=name,
        arch=arch,
        registers=use["REG"],
        shared=use["SHARED"],
        stack=use["STACK"],
        local_loads=count["LDL"],
        local_stores=count["STL"],
        matrix=sum(n for opcode, n in count.items() if opcode.endswith("MMA")),
        cp_async=count["LDGSTS"],
        tma=sum(count[opcode] for opcode in TMA),
        barriers=count["BAR"],
        instructions=count.total(),
    )


def _resources(path: Path) -> dict[str, dict[str, int]]:
    listed = subprocess.run(
        [tool("cuobjdump"), "--dump-resource-usage", str(path)], capture_output=True, text=True, check=True
    ).stdout
    functions = re.findall(r"Function (\S+):\n(.*)", listed)
    return {symbol: {k: int(v) for k, v in re.findall(r"(\w+):(\d+)", use)} for symbol, use in functions}


def _kernel_code(elf: bytes) -> Iterator[tuple[str, bytes]]:
    """(symbol, machine code) of each kernel: the sections `.text.<symbol>` of a 64-bit little-endian ELF file."""
    (table,) = struct.unpack_from("<Q", elf, 40)
    size, number, names = struct.unpack_from("<HHH", elf, 58)
    headers = [struct.unpack_from("<II4Q", elf, table + i * size) for i in range(number)]  # name, -, -, -, offset, size
    strings = headers[names][4]
    for name, _, _, _, offset, length in headers:
        start = strings + name
        section = elf[start : elf.index(b"\0", start)].decode()
        if section.startswith(".text."):
            yield section.removeprefix(".text."), elf[offset : offset + length]


def _count(arch: str, code: bytes, starts: list[int]) -> list[Counter[str]]:
    """How often each opcode occurs, for each of the kernels that start at these places of the code."""
    with tempfile.NamedTemporaryFile(suffix=".bin") as file:
        file.write(code)
        file.flush()
        processor = arch.replace("sm_", "SM")
        listed = subprocess.run(
            [tool("nvdisasm"), "--binary", processor, file.name], capture_output=True, text=True, check=True
        ).stdout
    counts = [Counter[str]() for _ in starts]
    for address, opcode in re.findall(r"^\s*/\*([0-9a-f]+)\*/\s+(?:@!?\w+\s+)?([A-Z]\w*)", listed, re.M):
        counts[bisect_right(starts, int(address, 16)) - 1][opcode] += 1
    read = sum(count.total() for count in counts)
    assert read == len(code) // INSTRUCTION_BYTES, f"nvdisasm gave {read} instructions of {len(code)} bytes"
    return counts


@cache
def tool(name: str) -> str:
    """The newest of the cuobjdump or nvdisasm at hand: the CUDA toolkit's, or those that the triton package brings."""
    triton = find_spec("triton")
    folders = [Path("/usr/local/cuda/bin")]
    if triton is not None and triton.origin is not None:
        folders.append(Path(triton.origin).parent / "backends" / "nvidia" / "bin")
    places = [shutil.which(name), *(shutil.which(name, path=str(folder)) for folder in folders)]
    versions = {}
    for place in filter(None, places):
        said = subprocess.run([place, "--version"], capture_output=True, text=True).stdout
        versions[place] = [int(part) for part in re.findall(r"\d+", said.rpartition("release ")[2])[:2]]
    if not versions:
        raise FileNotFoundError(f"{name} is needed to read kernels: it comes with the CUDA toolkit or triton's package")
    return max(versions, key=lambda place: versions[place])
