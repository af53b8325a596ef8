# SPDX-License-Identifier: Apache-2.0
"""The `cpu` backend of adamw_ema: PyTorch's own fused AdamW and lerp, which run at the speed of memory already.

PyTorch's kernel takes tensors of one dtype and no factor: low-precision parameters and gradients, and gradients to
be clipped, pass through float32 temporaries.
"""

import torch
from torch import Tensor


def forward(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    steps: list[Tensor],
    emas: list[Tensor],
    copies: list[Tensor],
    lr_tensor: Tensor | None,
    clip: Tensor | None,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    ema_decay: float,
) -> None:
    weights = [param.float() for param in params]  # the parameters themselves where they are float32
    gradients = [grad.float() for grad in grads]
    if clip is not None:
        gradients = list(torch._foreach_mul(gradients, clip))
    torch._fused_adamw_(
        weights, gradients, exp_avgs, exp_avg_sqs, [], steps, lr=lr if lr_tensor is None else float(lr_tensor),
        beta1=beta1, beta2=beta2, weight_decay=weight_decay, eps=eps, amsgrad=False, maximize=False,
    )  # fmt: skip
    if params[0].dtype != torch.float32:
        torch._foreach_copy_(params, weights)
        weights = [param.float() for param in params]
    if emas:
        torch._foreach_lerp_(emas, weights, 1 - ema_decay)
    if copies:
        torch._foreach_copy_(copies, params)
