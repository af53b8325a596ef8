# SPDX-License-Identifier: Apache-2.0
"""Diffusion Transformers."""

from .checkpoint import load_model, save_model
from .dit import CONDITIONING, DiT, DiT_models
from .macs import count_macs

__all__ = ["CONDITIONING", "DiT", "DiT_models", "count_macs", "load_model", "save_model"]
