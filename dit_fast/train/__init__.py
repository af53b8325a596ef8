# SPDX-License-Identifier: Apache-2.0
"""Training: `Trainer(config).run()`, what it is told, and those who watch it."""

from .config import TrainConfig
from .configfile import load_config, save_config
from .engine import Trainer, TrainResult
from .presets import PRESETS
from .watch import Record, RunInfo, Watcher, watchers_for

__all__ = [
    "PRESETS",
    "Record",
    "RunInfo",
    "TrainConfig",
    "TrainResult",
    "Trainer",
    "Watcher",
    "load_config",
    "save_config",
    "watchers_for",
]
