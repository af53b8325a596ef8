# SPDX-License-Identifier: Apache-2.0
"""The command as a person types it."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from dit_fast.cli import main
from dit_fast.models import DiT, save_model
from dit_fast.ops import NAMES
from dit_fast.parity import enliven


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


@pytest.mark.parametrize("channels,mode", [(1, "L"), (3, "RGB")])
def test_sample_draws_a_row_a_class(tmp_path, channels, mode):
    model = DiT(input_size=4, in_channels=channels, hidden_size=64, depth=1, num_heads=1, num_classes=3)
    save_model(enliven(model), tmp_path / "m.safetensors")
    command = ["sample", str(tmp_path / "m.safetensors"), "--out", str(tmp_path / "out" / "s.png"), "--steps", "4"]
    assert main([*command, "--classes", "2", "0", "--per-class", "5"]) == 0
    picture = Image.open(tmp_path / "out" / "s.png")
    assert picture.size == (20, 8) and picture.mode == mode
    first = np.asarray(picture)
    assert main([*command, "--classes", "2", "0", "--per-class", "5"]) == 0
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out" / "s.png")), first)  # same seed
    assert main([*command, "--classes", "2", "0", "--per-class", "5", "--seed", "1"]) == 0
    assert not np.array_equal(np.asarray(Image.open(tmp_path / "out" / "s.png")), first)
    assert main([*command, "--sampler", "ddim", "--cfg-scale", "1"]) == 0


def test_sample_says_what_is_wrong(tmp_path, capsys):
    assert main(["sample", str(tmp_path / "none.safetensors")]) == 2
    assert "no checkpoint at" in capsys.readouterr().err
    save_model(DiT(input_size=4, hidden_size=64, depth=1, num_heads=1, num_classes=3), tmp_path / "m.safetensors")
    assert main(["sample", str(tmp_path / "m.safetensors"), "--classes", "3"]) == 2
    assert "`--classes` must be from 0 to 2, got 3" in capsys.readouterr().err
    assert main(["sample", str(tmp_path / "m.safetensors")]) == 2
    assert "must have 1 or 3 channels" in capsys.readouterr().err


def test_sample_takes_half_precision_and_refuses_a_model_without_labels(tmp_path, capsys):
    shape = dict(input_size=4, in_channels=1, hidden_size=64, depth=1, num_heads=1)
    save_model(enliven(DiT(**shape, num_classes=2)).bfloat16(), tmp_path / "half.safetensors")
    out = str(tmp_path / "s.png")
    assert main(["sample", str(tmp_path / "half.safetensors"), "--steps", "2", "--out", out]) == 0
    save_model(DiT(**shape, num_classes=0), tmp_path / "free.safetensors")
    assert main(["sample", str(tmp_path / "free.safetensors"), "--out", out]) == 2
    assert "`cfg_scale` must be 1: the model has no labels" in capsys.readouterr().err
