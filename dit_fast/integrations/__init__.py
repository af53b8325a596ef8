# SPDX-License-Identifier: Apache-2.0
"""Models that other people wrote, made fast in place: `patch` swaps the forwards of their blocks, `unpatch` undoes it.

What is recognised is a list of recipes (`patching.py`): the public DiT lineage (`lineage.py`) and diffusers' blocks
(`diffusers/`, loaded where diffusers is).
"""

from . import lineage  # noqa: F401  (registers its recipes)
from .patching import Report, patch, unpatch

__all__ = ["Report", "patch", "unpatch"]
