# SPDX-License-Identifier: Apache-2.0
"""Training."""

from .loop import TrainConfig, TrainResult, train

__all__ = ["TrainConfig", "TrainResult", "train"]
