# SPDX-License-Identifier: Apache-2.0
"""The demo: a small DiT learns the handwritten digits of scikit-learn and draws them, with the quality measured."""

from .run import DemoConfig, run

__all__ = ["DemoConfig", "run"]
