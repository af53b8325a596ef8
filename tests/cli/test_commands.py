# SPDX-License-Identifier: Apache-2.0
"""The command as a person types it."""

import json
import os
import subprocess
import sys

from dit_fast.cli import main
from dit_fast.ops import NAMES


def test_parity_passes_and_writes_what_it_compared(tmp_path, capsys):
    file = tmp_path / "deep" / "parity.json"
    assert main(["parity", "--op", "gated_residual", "--dtype", "bfloat16", "--json", str(file)]) == 0
    rows = json.loads(file.read_text())["rows"]
    assert {row["backend"] for row in rows} == {"cpu", "triton"}
    assert {"out0", "dx", "dy", "dgate"} == {row["tensor"] for row in rows}
    assert all(row["passed"] and 0 <= row["ratio"] <= 1 for row in rows)
    assert "0 failed" in capsys.readouterr().out


def test_parity_of_the_model_and_a_backend_that_cannot_run(capsys):
    assert main(["parity", "--op", "model", "--backend", "cpu", "--dtype", "float32"]) == 0
    for op in ("adaln", "model"):
        assert main(["parity", "--op", op, "--backend", "cuda", "--dtype", "float32"]) == 1  # nothing was compared
        out = capsys.readouterr().out
        assert "backend 'cuda' cannot run here: tensors are on cpu" in out and "0 tensors compared" in out
    assert main(["parity", "--op", "softmax"]) == 2
    assert "`--op` must be one of" in capsys.readouterr().err


def test_parity_fails_when_a_kernel_is_wrong(monkeypatch, capsys):
    from dit_fast.ops._core import OPS

    pair = OPS["gated_residual"]._backend("cpu")
    wrong = type(pair)(lambda x, y, gate: x + gate[:1, None] * y, pair.backward, pair.why_not)  # OpenDiT's mistake
    monkeypatch.setitem(OPS["gated_residual"].backends, "cpu", wrong)
    assert main(["parity", "--op", "gated_residual", "--backend", "cpu", "--dtype", "float32"]) == 1
    assert "FAIL out0" in capsys.readouterr().out


def test_info_says_what_runs_and_why_not():
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "dit_fast", "info"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "native library: _native.so, instruction set" in done.stdout
    assert done.stdout.count("triton     no: tensors are on cpu; Triton needs a GPU") == len(NAMES)
    assert done.stdout.count("cpu        runs") == len(NAMES)


def test_info_prints_what_kernels_use(capsys):
    assert main(["info", "--kernels", "gated_residual"]) == 0
    out = capsys.readouterr().out
    cuda, _, triton = out.partition("Triton kernels: compiling for sm_80, sm_90a and sm_100a")
    assert "CUDA kernels" in cuda and ("built without nvcc" in cuda or "sm_90a" in cuda)
    rows = [line.split() for line in triton.splitlines() if "gated_residual._forward_kernel<bf16" in line]
    assert [row[0] for row in rows] == ["sm_80", "sm_90a", "sm_100a"]
    assert all(8 <= int(row[1]) <= 255 for row in rows)
    assert "  gated_residual: " in triton and "adaln._forward" not in triton
    assert main(["info", "--kernels", "softmax"]) == 2
    assert "`--kernels` must name ops among" in capsys.readouterr().err
