# SPDX-License-Identifier: Apache-2.0
"""Attention of other libraries as backends, held against ours, and which of them `auto` takes."""

import contextlib
import importlib
import logging
import sys
import types
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend

from dit_fast.ops import BackendUnavailable, adaln, attention, current_backend, use_backend
from dit_fast.ops._core import native
from dit_fast.ops.attention import libraries
from dit_fast.ops.attention.autograd import OP
from dit_fast.ops.attention.preference import WINS, Win
from dit_fast.parity import compare, run
from tests.ops.test_attention import DTYPES, HEADS, KERNELS, QKV, normal, sdpa

ROOT = Path(__file__).parents[2]
preference_module = importlib.import_module("dit_fast.ops.attention.preference")


@pytest.mark.parametrize("dtype", DTYPES)
def test_sdpa_is_pytorchs_bit_for_bit(dtype):
    q, k, v = (normal(2, t, 2, 72, seed=i, dtype=dtype) for i, t in enumerate((7, 5, 5)))
    with use_backend("sdpa"):
        got = run(attention, {"q": q, "k": k, "v": v}, ("q", "k", "v"), dtype)
    wanted = run(sdpa, {"q": q, "k": k, "v": v}, ("q", "k", "v"), dtype)
    for key, value in wanted.items():
        assert torch.equal(got[key], value), key


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tq,tk", [(63, 63), (25, 2), (7, 130)])
@pytest.mark.parametrize("backend", KERNELS)
def test_as_exact_as_sdpa(backend, tq, tk, dtype):
    """The rule of parity.py with PyTorch's own kernel in eager's place."""
    given = {name: normal(2, tq if name == "q" else tk, 2, 72, seed=ord(name), dtype=dtype) for name in "qkv"}
    exact = run(sdpa, {k: v.double() for k, v in given.items()}, tuple(given), dtype)
    theirs = run(sdpa, given, tuple(given), dtype)
    with use_backend(backend):
        ours = run(attention, given, tuple(given), dtype)
    for key, value in exact.items():
        error, their_error, ratio = compare(ours[key], theirs[key], value, dtype)
        assert ratio <= 1.0, f"{key}: error {error:.2e}, sdpa's {their_error:.2e}"


@pytest.fixture
def pinned(monkeypatch):
    choices = []
    monkeypatch.setattr(libraries, "sdpa_kernel", lambda choice: choices.append(choice) or contextlib.nullcontext())
    return choices


def test_sdpa_says_once_which_kernel_pytorch_picks(caplog, monkeypatch, pinned):
    monkeypatch.setattr(libraries, "_reported", set())
    with use_backend("sdpa"), caplog.at_level(logging.INFO, logger="dit_fast"):
        for heads in (QKV, QKV, QKV.bfloat16()):
            attention(heads)
    assert caplog.messages == [
        f"attention on cpu, torch.{dtype}, heads of 64: backend sdpa is PyTorch's FLASH_ATTENTION"
        for dtype in ("float32", "bfloat16")
    ]
    assert pinned == []


def test_a_kernel_of_pytorchs_is_pinned_by_name(pinned):
    libraries.LIBRARIES["sdpa_cudnn"][0](*QKV.unbind(2), 0.3)
    assert pinned == [SDPBackend.CUDNN_ATTENTION]


def test_sdpa_of_nothing(pinned):
    """PyTorch's flash kernel for the CPU divides by the number of tokens."""
    with use_backend("sdpa"):
        assert attention(QKV[:, :0]).shape == (2, 0, 128)
    assert pinned == [SDPBackend.MATH]


def test_flash_attn_is_called_or_says_why_not(monkeypatch):
    with use_backend("flash_attn"), pytest.raises(BackendUnavailable, match="flash-attn package is not installed"):
        attention(QKV)
    monkeypatch.setattr(libraries, "_installed", lambda module: module == "flash_attn")
    with use_backend("flash_attn"), pytest.raises(BackendUnavailable, match="tensors are on cpu"):
        attention(QKV)
    called = {}
    package = types.ModuleType("flash_attn")
    package.flash_attn_func = lambda q, k, v, **options: called.update(options, shapes=(q.shape, k.shape)) or (v, None)
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    q, k, v = QKV.unbind(2)
    assert libraries.flash_attn(q, k, v, 0.3) is v
    assert called == {"softmax_scale": 0.3, "deterministic": True, "shapes": (q.shape, k.shape)}


def test_auto_takes_what_a_result_shows(monkeypatch):
    assert all((ROOT / win.result).is_file() for win in WINS)
    win = Win("cpu", native.instruction_set(), (torch.float32,), (64,), (2, 300), "a file")
    monkeypatch.setattr(preference_module, "WINS", (win,))
    first = {
        "as measured": (QKV, "cpu"),
        "another width": (QKV[..., :8], "sdpa"),
        "another dtype": (QKV.bfloat16(), "sdpa"),
        "float64": (QKV.double(), "reference"),
    }
    for name, (tensor, wanted) in first.items():
        assert preference_module.preference([tensor])[0] == wanted, name
    assert preference_module.preference([HEADS, HEADS[:, :1], HEADS[:, :1]])[0] == "sdpa"
    assert OP.select(QKV) == "cpu" and OP.select(QKV.bfloat16()) == "sdpa"


def test_one_op_can_have_a_backend_of_its_own():
    before = current_backend(), current_backend("attention")
    with use_backend("reference", attention="sdpa"):
        assert current_backend("attention") == "sdpa" and current_backend("adaln") == "reference"
        with use_backend(attention="cpu"):
            assert current_backend() == "reference" and current_backend("attention") == "cpu"
        with use_backend("triton"):
            assert current_backend("attention") == "triton"
        assert current_backend("attention") == "sdpa"
    assert (current_backend(), current_backend("attention")) == before
    with pytest.raises(ValueError, match=r"use_backend: ops are .*'attention'.*, got \['atention'\]"):
        use_backend(atention="sdpa")
    with pytest.raises(ValueError, match=r"use_backend: `attention` must be one of .*'sdpa'.*, got 'fast'"):
        use_backend(attention="fast")
    with use_backend("sdpa"), pytest.raises(BackendUnavailable, match="adaln has no backend 'sdpa'"):
        adaln(HEADS[0], HEADS[0, :, 0], HEADS[0, :, 0])
