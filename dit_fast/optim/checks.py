# SPDX-License-Identifier: Apache-2.0
"""What an AdamWEMA refuses: a ValueError names the option, what was expected and what came."""

from typing import Any

import torch
from torch import Tensor

LOW_PRECISION = (torch.bfloat16, torch.float16)


def fail(argument: str, expected: str, got: object) -> None:
    raise ValueError(f"AdamWEMA: `{argument}` must be {expected}, got {got}")


def check_group(group: dict[str, Any]) -> None:
    """The options and parameters of one group."""
    for i, param in enumerate(group["params"]):
        if not param.is_floating_point():
            fail(f"params[{i}]", "floating point", param.dtype)
    lr, betas = group["lr"], group["betas"]
    if isinstance(lr, Tensor):
        if lr.numel() != 1:
            fail("lr", "a number or a tensor with one element", f"shape {tuple(lr.shape)}")
    elif not lr >= 0:
        fail("lr", "at least 0", lr)
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        fail("betas", "two numbers in [0, 1)", betas)
    for name in ("eps", "weight_decay"):
        if not group[name] >= 0:
            fail(name, "at least 0", group[name])
    if group["ema_decay"] is not None and not 0 <= group["ema_decay"] <= 1:
        fail("ema_decay", "in [0, 1] or None", group["ema_decay"])
    check_kind(group)


def check_kind(group: dict[str, Any]) -> None:
    """AdamW as it is here, of all that a group of torch.optim's Adam may ask for."""
    for name in ("amsgrad", "maximize", "differentiable"):
        if group.get(name):
            fail(name, "False", group[name])
    if not group.get("decoupled_weight_decay", True) and group["weight_decay"] != 0:
        fail("decoupled_weight_decay", "True, AdamW's, unless `weight_decay` is 0", False)


def check_saved(state_dict: dict[str, Any], groups: list[dict[str, Any]]) -> None:
    """A state_dict about to be loaded: its kind, and the shapes of its tensors. How many there are, torch checks."""
    for i, (saved, group) in enumerate(zip(state_dict["param_groups"], groups, strict=False)):
        missing = {"lr", "betas", "eps", "weight_decay"} - saved.keys()
        if missing:
            fail(f"state_dict['param_groups'][{i}]", "AdamW's", f"one without {', '.join(sorted(missing))}")
        check_kind(saved)
        for number, param in zip(saved["params"], group["params"], strict=False):
            for name, value in state_dict["state"].get(number, {}).items():
                if isinstance(value, Tensor) and name != "step" and value.shape != param.shape:
                    fail(f"state_dict['state'][{number}]['{name}']", f"of shape {tuple(param.shape)}",
                         f"shape {tuple(value.shape)}")  # fmt: skip
