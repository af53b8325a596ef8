# SPDX-License-Identifier: Apache-2.0
"""Triton kernels run in their interpreter where there is no GPU; this must be set before they are imported."""

import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
