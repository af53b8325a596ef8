# SPDX-License-Identifier: Apache-2.0
"""Tests run alike on every machine: on CPU tensors, Triton kernels in their interpreter, a GPU unseen. For those of a
GPU alone, `make gpu` says otherwise: TRITON_INTERPRET=0."""

import os

os.environ.setdefault("TRITON_INTERPRET", "1")  # before a kernel is imported

import pytest
import torch

from dit_fast.ops._core import native
from dit_fast.ops.linear_gelu import cpu_linear


@pytest.fixture(autouse=True)
def _gpu_unseen(request, monkeypatch):
    if not {"diffusion", "gpu"} & set(request.path.parts):  # those say themselves what they need
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture(params=["avx512", "avx2", "portable"])
def isa(request):
    """An instruction set of the CPU kernels, in use."""
    if request.param not in native.instruction_sets():
        pytest.skip(f"this CPU has no {request.param}")
    before = native.instruction_set()
    native.set_instruction_set(request.param)
    assert native.instruction_set() == request.param
    yield request.param
    native.set_instruction_set(before)


@pytest.fixture
def own(monkeypatch):
    """Linears by the library's kernels, whatever this machine would choose (after `isa`, where both are asked for)."""
    monkeypatch.setattr(cpu_linear, "CHOICE", {native.instruction_set(): "own"})
