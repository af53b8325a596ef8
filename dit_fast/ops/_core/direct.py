# SPDX-License-Identifier: Apache-2.0
"""When a kernel may be called without the operator around it, whose machinery takes longer than a small kernel."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_legacy_batchedtensor
from torch.autograd import forward_ad

PLAIN = (Tensor, torch.nn.Parameter)


def why_not_direct(arguments: Sequence[Any], differentiable: bool = False) -> str | None:
    """Who needs the operator (or PyTorch's function) to be called on these arguments; None if nobody would notice.

    What is `differentiable` may be called where a gradient is wanted, too.
    """
    if torch.compiler.is_compiling():  # asked first: what follows cannot be traced
        return "a graph is traced"
    gradient, strided = torch.is_grad_enabled() and not differentiable, torch.strided
    for argument in arguments:
        if type(argument) in PLAIN:
            if gradient and argument.requires_grad:
                return "a gradient is wanted"
            if argument.is_neg() or argument.layout is not strided or is_legacy_batchedtensor(argument):
                return "a tensor's memory does not hold its values one by one, or with the other sign"
        elif isinstance(argument, Tensor):
            return "a tensor is of a class of its own"
        elif isinstance(argument, list) and (reason := why_not_direct(argument, differentiable)) is not None:
            return reason
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return "a transform of torch.func or forward-mode differentiation is active"
    if torch._C._len_torch_dispatch_stack() or torch._C._len_torch_function_stack() or torch._C._get_tracing_state():
        return "a mode or a trace wants to see every operator"
    return None
