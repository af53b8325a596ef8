# SPDX-License-Identifier: Apache-2.0
"""Configurations by name: the paper's twelve models under its recipe, and the digits of the demo."""

from typing import Any

from dit_fast.models import DiT_models

DIGITS: dict[str, Any] = {
    "data": "digits",
    "flip": False,
    "workers": 0,
    "model": "DiT",
    "model_args": {"patch_size": 2, "hidden_size": 96, "depth": 3, "num_heads": 3},
    "steps": 1500,
    "batch_size": 128,
    "lr": 3e-3,
    "betas": (0.9, 0.99),
    "warmup": 100,
    "lr_schedule": "cosine",
    "ema": 0.995,
    "precision": "float32",
    "out": "runs/digits",
    "save_every": 500,
    "log_every": 50,
    "sample_every": 500,
    "sample_scale": 2.0,
    "sample_count": 100,
}
"""A DiT on the 1,797 handwritten digits of scikit-learn, 8 x 8 pixels: a minute or two on two CPU cores."""

PRESETS: dict[str, dict[str, Any]] = {
    **{name: {"model": name, "out": f"runs/{name.replace('/', '-')}"} for name in DiT_models},
    "digits": DIGITS,
}
"""Fields that differ from the defaults of `TrainConfig`, which are the paper's recipe."""
