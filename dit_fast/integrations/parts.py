# SPDX-License-Identifier: Apache-2.0
"""Parts of a patched block: a fused op in place of a part's own forward, decided call by call.

A part that an op computes (a norm, an activation) is not called. So that nobody misses it, the op is used only while
the part is `intact`: of the class it had, with no hooks on it. Otherwise the part itself runs. And where the op's
arguments do not fit (mixed dtypes, tensors of a distributed or quantised kind), the same formula runs in PyTorch.

N batch, T tokens, D width.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules import module as every
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from dit_fast import ops
from dit_fast.ops._core.checks import has_autocast


def intact(part: nn.Module, cls: type[nn.Module]) -> bool:
    """Whether calling `part` would run the forward of `cls` and nothing else."""
    watched = (
        part._forward_hooks
        or part._forward_pre_hooks
        or part._backward_hooks
        or part._backward_pre_hooks
        or every._global_forward_hooks
        or every._global_forward_pre_hooks
        or every._global_backward_hooks
        or every._global_backward_pre_hooks
    )
    return type(part) is cls and not watched and "forward" not in part.__dict__


def plain(*tensors: Tensor) -> bool:
    """Whether kernels may read these tensors: not DTensors, nor quantised or other wrappers, and not within a transform
    of torch.func or forward-mode differentiation, of which kernels know nothing and would lose the tangents."""
    transformed = torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
    return not transformed and not any(is_traceable_wrapper_subclass(tensor) for tensor in tensors)


def in_autocast(x: Tensor) -> bool:
    return has_autocast(x.device.type) and torch.is_autocast_enabled(x.device.type)


def alike(*tensors: Tensor) -> bool:
    """Whether an op takes these together: plain, and of one dtype, unless autocast is to make it one."""
    return plain(*tensors) and (
        all(t.dtype == tensors[0].dtype for t in tensors) or in_autocast(tensors[0])
    )


def fits(x: Tensor, *rows: Tensor) -> bool:
    """Whether an op takes tokens x (N, T, D) with these (N, D); PyTorch would broadcast other shapes too."""
    return alike(x, *rows) and x.dim() == 3 and all(row.shape == (x.shape[0], x.shape[2]) for row in rows)


def is_layer_norm(norm: nn.Module) -> bool:
    """A layer norm over the last dimension without affine parameters, which `ops.adaln` computes."""
    return (
        type(norm) is nn.LayerNorm and len(norm.normalized_shape) == 1 and norm.weight is None and norm.bias is None
    )


def bypassed(norm: nn.Module) -> bool:
    """Whether an op may compute this norm now."""
    return intact(norm, nn.LayerNorm) and is_layer_norm(norm)


def modulated(norm: nn.Module, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """norm(x) * (1 + scale) + shift for x (N, T, D), shift and scale (N, D)."""
    if bypassed(norm) and fits(x, shift, scale):
        return ops.adaln(x, shift, scale, norm.eps)  # type: ignore[arg-type]
    return norm(x) * (1 + scale[:, None]) + shift[:, None]


def gated(x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
    """x + gate * y for x, y (N, T, D), gate (N, D), in the dtype that PyTorch would give it."""
    if fits(x, gate) and alike(x, y) and x.shape == y.shape:
        return ops.gated_residual(x, y, gate).to(_result(x, y, gate))
    return x + gate[:, None] * y


def gated_modulated(
    x: Tensor, y: Tensor, gate: Tensor, norm: nn.Module, shift: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor]:
    """x' = x + gate * y, and norm(x') * (1 + scale) + shift."""
    if bypassed(norm) and fits(x, gate, shift, scale) and alike(x, y) and x.shape == y.shape:
        x_new, h = ops.gated_residual_adaln(x, y, gate, shift, scale, norm.eps)  # type: ignore[arg-type]
        return x_new.to(_result(x, y, gate)), h
    x = gated(x, y, gate)
    return x, modulated(norm, x, shift, scale)


def _result(x: Tensor, y: Tensor, gate: Tensor) -> torch.dtype:
    """Under autocast the ops give float32; PyTorch's sum keeps the widest dtype of what came."""
    return torch.promote_types(torch.promote_types(x.dtype, y.dtype), gate.dtype)


def is_tensors(*values: object) -> bool:
    return all(isinstance(value, Tensor) for value in values)


def head_norms(module: nn.Module) -> dict[str, Any] | None:
    """The arguments for `ops.attention` in place of q_norm and k_norm: none where there are no norms, None where only
    the modules can do it."""
    if absent(module, "q_norm") and absent(module, "k_norm"):
        return {}
    q, k = getattr(module, "q_norm", None), getattr(module, "k_norm", None)
    if not isinstance(q, nn.LayerNorm | nn.RMSNorm) or not isinstance(k, nn.LayerNorm | nn.RMSNorm):
        return None
    cls: type[nn.Module] = nn.LayerNorm if isinstance(q, nn.LayerNorm) else nn.RMSNorm
    biases = {"q_bias": getattr(q, "bias", None), "k_bias": getattr(k, "bias", None)}
    affine = [t for t in (q.weight, k.weight, *biases.values()) if t is not None]
    if not intact(q, cls) or not intact(k, cls) or q.eps is None or q.eps != k.eps or not plain(*affine):
        return None
    if len(q.normalized_shape) != 1 or q.normalized_shape != k.normalized_shape:
        return None
    kind = "layer" if cls is nn.LayerNorm else "rms"
    return {"norm": kind, "q_weight": q.weight, "k_weight": k.weight, **biases, "eps": q.eps}


def absent(module: nn.Module, name: str) -> bool:
    """Whether a part is missing, None or an Identity nobody watches."""
    part = getattr(module, name, None)
    return part is None or (isinstance(part, nn.Module) and intact(part, nn.Identity))


def dropping(module: nn.Module, name: str) -> bool:
    """Whether a dropout of this name is, or may be, active: a module, or a rate."""
    if absent(module, name):
        return False
    part = getattr(module, name)
    if isinstance(part, float | int):
        return bool(part) and module.training
    return not intact(part, nn.Dropout) or (part.p > 0 and part.training)


def through(module: nn.Module, names: tuple[str, ...], x: Tensor) -> Tensor:
    """x through the parts of these names that the module has, in order."""
    for name in names:
        part = getattr(module, name, None)
        if part is not None:
            x = part(x)
    return x
