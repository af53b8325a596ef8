# SPDX-License-Identifier: Apache-2.0
"""Branches of blocks as one call of `ops.branches`, where calling their modules would do nothing else."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from torch import Tensor, nn

from dit_fast.ops import branches as calls

from .layers import Attention, Mlp, is_linear, untouched

if TYPE_CHECKING:
    from .blocks import Modulation

Step = tuple[Callable[[Tensor], Tensor] | None, "Modulation", "Modulation"]
"""A branch, its own modulation, of which the gate counts, and the next, of which shift, scale and eps do."""


def in_one_call(x: Tensor, h: Tensor, steps: Iterable[Step]) -> tuple[Tensor, Tensor] | None:
    """x and h after x = x + gate * branch(h), h = LN(x) * (1 + scale) + shift for each branch in turn.

    None where modules and ops are to be called: somebody has hooked, replaced or compiled a module, or `ops.branches`
    says so.
    """
    if not calls.worth_asking(x):
        return None
    given = []
    for branch, own, after in steps:
        if type(branch) is Attention and branch.qk_norm is None:
            heads, layers = branch.num_heads, _layers(branch, "qkv", "proj")
        elif type(branch) is Mlp:
            heads, layers = 0, _layers(branch, "fc1", "fc2")
        else:
            return None
        if layers is None:
            return None
        given.append(calls.Branch(heads, layers, own.gate, after.shift, after.scale, after.eps))
    return calls.branches(x, h, given)


def _layers(branch: nn.Module, *names: str) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
    """Weights and biases of a branch's two Linears; None where one has none or its modules were changed."""
    if not untouched(branch):
        return None
    found = []
    for name in names:
        layer = branch._modules[name]  # nn.Module's __getattr__ takes its time
        if not is_linear(layer):
            return None
        found += [layer._parameters.get("weight"), layer._parameters.get("bias")]
    weight1, bias1, weight2, bias2 = found
    if weight1 is None or bias1 is None or weight2 is None or bias2 is None:  # somebody may keep them elsewhere
        return None
    return weight1, bias1, weight2, bias2
