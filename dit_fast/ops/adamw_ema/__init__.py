# SPDX-License-Identifier: Apache-2.0
"""One step of training's bookkeeping: AdamW, the average of the weights, clipping, a low-precision copy."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .._core import fail
from .operator import OP
from .reference import adamw_ema as reference

LOW_PRECISION = (torch.bfloat16, torch.float16)


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
    """Step every parameter by AdamW and move its average after it, in place and in one pass over memory.

    AdamW as `torch.optim.AdamW` computes it (Loshchilov and Hutter, arXiv 1711.05101, algorithm 2), then
    ema.lerp_(param, 1 - ema_decay) and copy.copy_(param). `dit_fast.optim.AdamWEMA` is the optimizer made of it.
    Nothing is read back to the host, so a step can be captured in a CUDA graph.

    Args:
        params: tensors of one dtype and device and any shapes: float32; or bfloat16 or float16, computed in float32
            and rounded once, after which updates below half a rounding are lost (float64 on the reference backend).
        grads: their gradients, of one dtype: float32, the parameters' or that of `copies`. Left as they are.
        exp_avgs, exp_avg_sqs: the moments, float32, zero at first.
        steps: how many steps each parameter has taken, float32 with one element; this call adds 1.
        emas: the averages, float32; empty for none. They follow the parameters as stored, after rounding.
        copies: where float32 parameters are also stored rounded to bfloat16 or float16; empty for none.
        lr: a number, or a tensor with one element: on the parameters' device it is read there at each replay of a
            graph.
        betas, eps, weight_decay: of AdamW.
        ema_decay: share of an average that stays.
        clip: 0-d float32 tensor on the parameters' device that multiplies the gradients; None for 1.

    Raises:
        ValueError: a tensor's shape, dtype, layout or device does not fit, or a number is out of range.
        BackendUnavailable: a backend was asked for by name and cannot run.
    """
    if not params:
        return
    _check_tensors(params, grads, exp_avgs, exp_avg_sqs, steps, emas, copies)
    _check_numbers(params[0], lr, betas, eps, weight_decay, ema_decay, clip)
    backend = OP.select(*params)
    if backend == "reference":
        reference(
            params, grads, exp_avgs, exp_avg_sqs, steps, emas, copies,
            lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, ema_decay=ema_decay, clip=clip,
        )  # fmt: skip
        return
    torch._foreach_add_(list(steps), 1)
    lr_tensor = None
    if isinstance(lr, Tensor) and lr.device.type != "cpu":
        lr_tensor, lr = lr.float().reshape(()), 0.0
    lists = [list(tensors) for tensors in (params, grads, exp_avgs, exp_avg_sqs, steps, emas, copies)]
    OP(
        *lists, lr_tensor, clip, float(lr), *betas, eps, weight_decay, ema_decay, backend,
    )  # fmt: skip


def _check_tensors(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    steps: Sequence[Tensor],
    emas: Sequence[Tensor],
    copies: Sequence[Tensor],
) -> None:
    first = params[0]
    if not first.is_floating_point():
        fail("adamw_ema", "params[0]", "floating point", first.dtype)
    state = torch.float64 if first.dtype == torch.float64 else torch.float32
    copied = copies[0].dtype if copies else first.dtype
    if copies and (first.dtype != torch.float32 or copied not in LOW_PRECISION):
        fail("adamw_ema", "copies[0]", "bfloat16 or float16, of float32 `params`", f"{copied} of {first.dtype}")
    own = grads[0].dtype if grads and grads[0].dtype in (state, first.dtype, copied) else first.dtype
    lists = {
        "params": (params, first.dtype), "grads": (grads, own), "exp_avgs": (exp_avgs, state),
        "exp_avg_sqs": (exp_avg_sqs, state), "emas": (emas, state), "copies": (copies, copied),
    }  # fmt: skip
    for name, (tensors, dtype) in lists.items():
        if len(tensors) != len(params) and not (name in ("emas", "copies") and not tensors):
            fail("adamw_ema", name, f"{len(params)} tensors, one for each of `params`", len(tensors))
        for i, (tensor, param) in enumerate(zip(tensors, params, strict=False)):
            _check_tensor(f"{name}[{i}]", tensor, param.shape, dtype, first.device)
    if len(steps) != len(params):
        fail("adamw_ema", "steps", f"{len(params)} tensors, one for each of `params`", len(steps))
    for i, step in enumerate(steps):
        _check_tensor(f"steps[{i}]", step, torch.Size(), torch.float32, first.device)


def _check_tensor(name: str, tensor: Tensor, shape: torch.Size, dtype: torch.dtype, device: torch.device) -> None:
    if tensor.shape != shape:
        fail("adamw_ema", name, f"of shape {tuple(shape)}", f"shape {tuple(tensor.shape)}")
    if tensor.dtype != dtype:
        fail("adamw_ema", name, str(dtype), tensor.dtype)
    if tensor.device != device:
        fail("adamw_ema", name, f"on {device}", tensor.device)
    if tensor.layout != torch.strided:
        fail("adamw_ema", name, "dense", tensor.layout)


def _check_numbers(
    first: Tensor,
    lr: float | Tensor,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    ema_decay: float,
    clip: Tensor | None,
) -> None:
    if isinstance(lr, Tensor):
        if lr.numel() != 1:
            fail("adamw_ema", "lr", "a number or a tensor with one element", f"shape {tuple(lr.shape)}")
        if lr.device.type != "cpu" and lr.device != first.device:
            fail("adamw_ema", "lr", f"on the CPU or on {first.device}", lr.device)
    elif not lr >= 0:
        fail("adamw_ema", "lr", "at least 0", lr)
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        fail("adamw_ema", "betas", "two numbers in [0, 1)", betas)
    for name, value in (("eps", eps), ("weight_decay", weight_decay)):
        if not value >= 0:
            fail("adamw_ema", name, "at least 0", value)
    if not 0 <= ema_decay <= 1:
        fail("adamw_ema", "ema_decay", "in [0, 1]", ema_decay)
    if clip is not None:
        dtype = torch.float64 if first.dtype == torch.float64 else torch.float32
        _check_tensor("clip", clip, torch.Size(), dtype, first.device)
