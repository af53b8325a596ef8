# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of other DiTs, both ways and bit for bit: `convert`, `load`.

| format | what it is |
|---|---|
| `dit_fast` | a folder (`config.json`, `model.safetensors`) or one `.safetensors` file of `save_model` |
| `release` | the public DiT release's `.pt`: a state dict, or a training checkpoint with `ema` and `model` inside |
| `sit` | SiT's `.pt`: the same file, of a model whose output is the first half of the channels |
| `diffusers` | a folder of `DiTTransformer2DModel`, or a pipeline's folder around one |

A format is recognised by what a file holds. Weights keep their dtypes. What does not fit is a ValueError that names the
key and the nearest known one, or says why a model has no place in a format, before anything is written.
"""

from .formats import FORMATS, Checkpoint, convert, load, read, write

__all__ = ["FORMATS", "Checkpoint", "convert", "load", "read", "write"]
