# SPDX-License-Identifier: Apache-2.0
"""Training."""

from .config import TrainConfig
from .engine import Trainer, TrainResult

__all__ = ["TrainConfig", "TrainResult", "Trainer"]
