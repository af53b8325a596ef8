# SPDX-License-Identifier: Apache-2.0
"""Tests run alike on every machine: on CPU tensors, Triton kernels in their interpreter, a GPU unseen. For those of a
GPU alone, `make gpu` says otherwise: TRITON_INTERPRET=0."""

import os

os.environ.setdefault("TRITON_INTERPRET", "1")  # before a kernel is imported

import pytest
import torch


@pytest.fixture(autouse=True)
def _gpu_unseen(request, monkeypatch):
    if not {"diffusion", "gpu"} & set(request.path.parts):  # those say themselves what they need
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
