# SPDX-License-Identifier: Apache-2.0
"""Optimizers."""

from .adamw_ema import AdamWEMA

__all__ = ["AdamWEMA"]
