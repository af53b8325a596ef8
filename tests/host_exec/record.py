# SPDX-License-Identifier: Apache-2.0
"""Records what a GPU computes in each probe: `python -m tests.host_exec.record [probe ...]`, where there is one, with
nvcc.

Each probe the GPU has is run on a few inputs, compared with what the PTX ISA says (ptx_semantics.py), and written to
tests/host_exec/golden/<probe>.npz; test_ptx.py replays those files on host_exec ever after.
"""

import ctypes
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from tests.host_exec.build import ROOT
from tests.host_exec.ptx_semantics import PROBES

GOLDEN = Path(__file__).parent / "golden"
SOURCE = ROOT / "csrc" / "host_exec" / "probes.cu"
CASES = [(True, 0), (False, 1), (False, 2)]  # exact, seed


def nvcc(architectures: list[str], *arguments: str) -> None:
    codes = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in architectures]
    command = ["nvcc", "-std=c++17", f"-I{ROOT / 'csrc'}", "-Xcompiler", "-fPIC", *codes, *arguments, str(SOURCE)]
    subprocess.run(command, check=True, capture_output=True, text=True)


def record(library: ctypes.CDLL, name: str, device: str) -> None:
    probe = PROBES[name]
    sizes = ctypes.c_size_t(), ctypes.c_size_t()
    assert library.dit_probe_sizes(name.encode(), ctypes.byref(sizes[0]), ctypes.byref(sizes[1]))
    inputs, outputs = [], []
    for exact, seed in CASES:
        made = probe.make(np.random.default_rng(seed), exact)
        assert made.nbytes == sizes[0].value
        given = torch.frombuffer(bytearray(made.tobytes()), dtype=torch.uint8).cuda()
        got = torch.full((sizes[1].value,), 255, dtype=torch.uint8, device="cuda")
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        pointers = ctypes.c_void_p(given.data_ptr()), ctypes.c_void_p(got.data_ptr())
        status = library.dit_probe(name.encode(), *pointers, stream)
        assert status == 0, f"{name}: CUDA error {status}"
        result = got.cpu().numpy().tobytes()
        probe.check(made, result)
        inputs.append(np.frombuffer(made.tobytes(), np.uint8))
        outputs.append(np.frombuffer(result, np.uint8))
    np.savez_compressed(GOLDEN / f"{name}.npz", inputs=np.stack(inputs), outputs=np.stack(outputs), device=device)


def main() -> int:
    if not torch.cuda.is_available() or not shutil.which("nvcc"):
        print("golden vectors need a GPU and nvcc")
        return 1
    major, minor = torch.cuda.get_device_capability()
    capability = 10 * major + minor
    device = torch.cuda.get_device_name()
    GOLDEN.mkdir(exist_ok=True)
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder) / "probes.so"
        nvcc([f"{capability}a" if capability == 90 else str(capability)], "-shared", "-o", str(built))
        library = ctypes.CDLL(str(built))
        names = sys.argv[1:] or list(PROBES)
        for i, name in enumerate(names):
            first, last = PROBES[name].capability
            if capability < first or (last is not None and capability > last):
                print(f"{name}: {device} does not have it")
                continue
            try:
                record(library, name, device)
                print(f"{name}: recorded on {device}")
            except AssertionError as error:
                failed += 1
                print(f"{name}: {device} differs from the PTX ISA as we read it: {error}")
            except RuntimeError as error:  # CUDA's: this process can do no more
                print(f"{name}: on {device}: {str(error).splitlines()[0]}", flush=True)
                if names[i + 1 :]:
                    subprocess.run([sys.executable, "-m", "tests.host_exec.record", *names[i + 1 :]], cwd=ROOT)
                return 1
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
