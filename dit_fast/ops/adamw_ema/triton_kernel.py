# SPDX-License-Identifier: Apache-2.0
"""Triton kernel of adamw_ema. A launch a tensor; its elements, laid end to end, are cut into tiles of BLOCK, grid
(cdiv(numel, BLOCK)). Formulas in operator.py.

What depends on the step is the same for all elements: it is computed in float64 by PyTorch, on the device, for all
tensors at once, as factors (4, tensors) float32:

    lr / (1 - beta1^t),   1 / sqrt(1 - beta2^t),   lr weight_decay,   clip

All arithmetic of the kernel is float32.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 512
"""4 elements a thread of 4 warps: 16 bytes of float32."""


@triton.jit(do_not_specialize=["index", "tensors"])
def _kernel(
    param, grad, exp_avg, exp_avg_sq, ema, copy, numel, factors, index, tensors,
    rest1, beta2, rest2, eps, rest_ema, HAS_EMA: tl.constexpr, HAS_COPY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = at < numel
    step_size = tl.load(factors + index)
    unbias = tl.load(factors + tensors + index)
    decay = tl.load(factors + 2 * tensors + index)
    clip = tl.load(factors + 3 * tensors + index)
    g = tl.load(grad + at, mask=mask, other=0.0).to(tl.float32) * clip
    w = tl.load(param + at, mask=mask, other=0.0).to(tl.float32)
    m = tl.load(exp_avg + at, mask=mask, other=0.0)
    v = tl.load(exp_avg_sq + at, mask=mask, other=1.0)  # so that no lane divides by 0
    m += rest1 * (g - m)
    v = beta2 * v + rest2 * g * g
    w -= decay * w
    w -= step_size * m / (tl.sqrt_rn(v) * unbias + eps)
    stored = w.to(param.dtype.element_ty)
    tl.store(param + at, stored, mask=mask)
    tl.store(exp_avg + at, m, mask=mask)
    tl.store(exp_avg_sq + at, v, mask=mask)
    if HAS_EMA:
        average = tl.load(ema + at, mask=mask, other=0.0)
        tl.store(ema + at, average + rest_ema * (stored.to(tl.float32) - average), mask=mask)
    if HAS_COPY:
        tl.store(copy + at, stored.to(copy.dtype.element_ty), mask=mask)


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
    t = torch.stack(steps).double()
    rate = lr if lr_tensor is None else lr_tensor
    rows = (
        rate / (1 - beta1**t),
        (1 - beta2**t).rsqrt(),
        torch.ones_like(t) * rate * weight_decay,
        torch.ones_like(t) * (1.0 if clip is None else clip),
    )
    factors = torch.stack(rows).float()  # (4, tensors)
    for i, param in enumerate(params):
        if param.numel():
            _kernel[(triton.cdiv(param.numel(), BLOCK),)](
                param, grads[i], exp_avgs[i], exp_avg_sqs[i], emas[i] if emas else param,
                copies[i] if copies else param, param.numel(), factors, i, len(params),
                1 - beta1, beta2, 1 - beta2, eps, 1 - ema_decay,
                HAS_EMA=bool(emas), HAS_COPY=bool(copies), BLOCK=BLOCK,
            )  # fmt: skip
