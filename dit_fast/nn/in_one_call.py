# SPDX-License-Identifier: Apache-2.0
"""A branch and what ends it as one call of `ops.branch`, where calling its modules would do nothing else."""

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from dit_fast.ops import branch as calls

from .layers import Attention, Linear, Mlp


def ended(
    branch: Callable[[Tensor], Tensor], x: Tensor, h: Tensor, gate: Tensor, shift: Tensor, scale: Tensor, eps: float
) -> tuple[Tensor, Tensor] | None:
    """x + gate * branch(h), and that, normalised with shift and scale; None where module and op are to be called.

    So they are where somebody has hooked, replaced or compiled a module of the branch, and where `ops.branch` says so.
    """
    if not calls.worth_asking(x) or _has_any_global_hook():
        return None
    if type(branch) is Attention and branch.qk_norm is None:
        layers = _layers(branch, "qkv", "proj")
        return layers and calls.attention_branch(x, h, *layers, branch.num_heads, gate, shift, scale, eps)
    if type(branch) is Mlp:
        layers = _layers(branch, "fc1", "fc2")
        return layers and calls.mlp_branch(x, h, *layers, gate, shift, scale, eps)
    return None


def _layers(branch: nn.Module, first: str, last: str) -> tuple[calls.Layer, calls.Layer] | None:
    """Weights and biases of a branch's two Linears; None where its modules do more than their classes say."""
    one, other = branch._modules[first], branch._modules[last]  # nn.Module's __getattr__ takes its time
    if type(one) is not Linear or type(other) is not Linear:
        return None
    if not (_untouched(branch) and _untouched(one) and _untouched(other)):
        return None
    a, b = one._parameters, other._parameters
    weights = a.get("weight"), b.get("weight")
    if weights[0] is None or weights[1] is None:  # somebody keeps them elsewhere
        return None
    return (weights[0], a["bias"]), (weights[1], b["bias"])


def _untouched(module: nn.Module) -> bool:
    return not (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or module._compiled_call_impl is not None
        or "forward" in module.__dict__
    )
