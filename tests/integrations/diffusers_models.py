# SPDX-License-Identifier: Apache-2.0
"""A tiny model of each architecture, by name."""

from . import diffusers_images, diffusers_videos

CASES = {**diffusers_images.CASES, **diffusers_videos.CASES}
