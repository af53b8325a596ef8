# SPDX-License-Identifier: Apache-2.0
"""Sampling."""

from .sampler import sample, to_uint8

__all__ = ["sample", "to_uint8"]
