# SPDX-License-Identifier: Apache-2.0
"""AdamW, the average of the weights and their low-precision copy in plain PyTorch: the specification."""

from collections.abc import Sequence

import torch
from torch import Tensor


@torch.no_grad()
def adamw_ema(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    steps: Sequence[Tensor],
    emas: Sequence[Tensor] = (),
    copies: Sequence[Tensor] = (),
    *,
    lr: float | Tensor,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 1e-2,
    ema_decay: float = 0.9999,
    clip: Tensor | None = None,
) -> None:
    beta1, beta2 = betas
    for param, grad, m, v, step in zip(params, grads, exp_avgs, exp_avg_sqs, steps, strict=True):
        step.add_(1)
        t = step.double()
        w, g = param.to(m.dtype), grad.to(m.dtype)
        g = g if clip is None else g * clip
        m.lerp_(g, 1 - beta1)
        v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
        denominator = v.sqrt() / (1 - beta2**t).sqrt() + eps
        w = w * (1 - lr * weight_decay) - lr / (1 - beta1**t) * (m / denominator)
        param.copy_(w)  # rounded to its dtype
    for ema, param in zip(emas, params, strict=False):  # no averages or copies: none
        ema.lerp_(param.to(ema.dtype), 1 - ema_decay)
    for copy, param in zip(copies, params, strict=False):
        copy.copy_(param)
