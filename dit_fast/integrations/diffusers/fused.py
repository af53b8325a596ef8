# SPDX-License-Identifier: Apache-2.0
"""The three ops with the calling conventions of diffusers' blocks; what an op cannot express stays plain PyTorch.

x, y (N, T, D) tokens. shift, scale, gate are rows, (N, D) or (N, 1, D), N or 1 of them; where they are (N, T, D), one a
token, the functions compute the plain expression. So they do, at each call anew, where the layer norm that an op would
bypass has weights, hooks or a forward of its own.

Results have the dtype of the plain expression, under autocast too: there a layer norm gives float32 (but on CPUs), a
sum or a product the wider of its arguments. Arguments are cast to that dtype first, which loses nothing.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from dit_fast import ops
from dit_fast.ops._core import without_autocast
from dit_fast.ops._core.checks import has_autocast

from ..parts import intact, plain

FP32_LAYER_NORM = ("diffusers.models.normalization", "FP32LayerNorm")


def adaln(norm: Any, x: Tensor, shift: Tensor, scale: Tensor, cast: torch.dtype | None = None) -> Tensor:
    """norm(x) * (1 + scale) + shift; `cast` is what the original casts norm(x) to."""
    rows = _rows(x, shift, scale)
    if rows is None or not is_plain_norm(norm):
        h = norm(x) if cast is None else norm(x).to(cast)
        return h * (1 + _per_token(scale)) + _per_token(shift)
    dtype = _promote(_normalised(norm, x, x.dtype, cast), shift, scale)
    shift, scale = (row.to(dtype) for row in rows)
    with _own_dtypes(x):
        return ops.adaln(x.to(dtype), shift, scale, norm.eps)


def gated_residual(x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
    """x + gate * y. With x and y of two dtypes a cast would cost more than the fusion saves."""
    rows = _rows(x, gate)
    if rows is None or x.shape != y.shape or not x.dtype == y.dtype == _promote(x.dtype, gate):
        return x + _per_token(gate) * y
    with _own_dtypes(x):
        return ops.gated_residual(x, y, rows[0].to(x.dtype))


def gated_residual_adaln(
    norm: Any, x: Tensor, y: Tensor, gate: Tensor, shift: Tensor, scale: Tensor, cast: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """x_new = x + gate * y and adaln(norm, x_new, shift, scale)."""
    rows = _rows(x, gate, shift, scale)
    dtype = _promote(x.dtype, y, gate)
    one_dtype = dtype == _promote(_normalised(norm, x, dtype, cast), shift, scale)
    if rows is None or x.shape != y.shape or not is_plain_norm(norm) or not one_dtype:
        x = gated_residual(x, y, gate)
        return x, adaln(norm, x, shift, scale, cast)
    gate, shift, scale = (row.to(dtype) for row in rows)
    with _own_dtypes(x):
        return ops.gated_residual_adaln(x.to(dtype), y.to(dtype), gate, shift, scale, norm.eps)


def residual_adaln(norm: Any, x: Tensor, y: Tensor, shift: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """x_new = x + y, of a branch without a gate, and adaln(norm, x_new, shift, scale)."""
    one = x.new_ones(1, 1).to(y.dtype).expand(1, x.shape[-1])
    return gated_residual_adaln(norm, x, y, one, shift, scale)


def second_half(
    x: Tensor,
    y: Tensor,
    modulation: Sequence[Tensor],
    norm: Any,
    ff: Callable[[Tensor], Tensor],
    cast: torch.dtype | None = None,
) -> Tensor:
    """A stream of a block from its attention's output y on: add it, normalise, feed forward, add.

    `modulation` holds the attention's gate, then the shift, scale and gate of the feed forward.
    """
    gate, shift, scale, gate_ff = modulation
    x, h = gated_residual_adaln(norm, x, y, gate, shift, scale, cast)
    return gated_residual(x, ff(h), gate_ff)


def clip(x: Tensor) -> Tensor:
    """Many blocks keep float16 finite."""
    return x.clip(-65504, 65504) if x.dtype == torch.float16 else x


def is_layer_norm(norm: Any) -> bool:
    """A layer norm without weights, which the ops can stand for."""
    kind = type(norm)
    known = kind is nn.LayerNorm or (kind.__module__, kind.__qualname__) == FP32_LAYER_NORM
    return known and norm.weight is None and norm.bias is None


def is_plain_norm(norm: Any) -> bool:
    """... and that calling it does nothing else."""
    return is_layer_norm(norm) and intact(norm, type(norm))


def _rows(x: Tensor, *modulations: Tensor) -> list[Tensor] | None:
    """Each as (N, D); None where one is not a row a sample."""
    if x.dim() != 3 or not plain(x, *modulations):
        return None
    n, _, d = x.shape
    rows = []
    for m in modulations:
        if m.dim() == 3 and m.shape[1] == 1:
            m = m[:, 0]
        if m.dim() != 2 or m.shape[1] != d or m.shape[0] not in (1, n):
            return None
        rows.append(m.expand(n, d))
    return rows


def _per_token(m: Tensor) -> Tensor:
    return m.unsqueeze(1) if m.dim() == 2 else m


def _promote(dtype: torch.dtype, *tensors: Tensor) -> torch.dtype:
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def _normalised(norm: Any, x: Tensor, dtype: torch.dtype, cast: torch.dtype | None) -> torch.dtype:
    """The dtype of norm(x), x having `dtype`."""
    if cast is not None:
        return cast
    widened = type(norm) is nn.LayerNorm and x.device.type != "cpu" and dtype != torch.float64 and _is_autocast(x)
    return torch.float32 if widened else dtype


def _is_autocast(x: Tensor) -> bool:
    device = x.device.type
    return has_autocast(device) and torch.is_autocast_enabled(device)


def _own_dtypes(x: Tensor) -> AbstractContextManager[object]:
    """The dtypes are settled: no autocast in the op."""
    return without_autocast(x.device.type) if _is_autocast(x) else nullcontext()
