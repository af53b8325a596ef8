# SPDX-License-Identifier: Apache-2.0
"""Classifier-free guidance (arXiv 2207.12598, eq. 6) on some or all channels of the predicted noise.

LEGEND: N batch, C channels of x (so 2C in a learned-variance output: C of noise, C of variance), H height, W
width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

CfgChannels = int | Literal["all"]


def guide(
    model_out: Tensor, cfg_scale: float | Tensor, cfg_channels: CfgChannels = 3, *, in_channels: int
) -> Tensor:
    """Guide a doubled batch: both halves get eps = eps_null + cfg_scale * (eps_cond - eps_null).

    Args:
        model_out: (2N, C or more, H, W); conditional half first, null half second. Its first `in_channels`
            channels are the predicted noise; the others (the variance) are passed through, each half its own.
        cfg_scale: 1 + w of the paper; 1 leaves the conditional half as it is. A tensor has to broadcast to
            (N, C, H, W).
        cfg_channels: "all", or how many of the first noise channels are guided; the rest stay per half. The
            default 3 is that of the published DiT results (a three-channel rule kept for four-channel
            latents), and means all of them where in_channels < 3. Any other count above in_channels is an
            error.
        in_channels: C, the channels of x.

    Returns a tensor like model_out, computed in float32 or better and rounded once.
    Raises ValueError naming `model_out`, `cfg_channels` or `in_channels`.
    """
    if model_out.dim() < 2 or model_out.shape[0] % 2 or not model_out.is_floating_point():
        raise ValueError(
            "model_out: expected floating point (2N, C, ...), "
            f"came {model_out.dtype} {tuple(model_out.shape)}"
        )
    if not 1 <= in_channels <= model_out.shape[1]:
        raise ValueError(
            f"in_channels: expected 1 to {model_out.shape[1]}, model_out's channels, came {in_channels}"
        )
    guided_channels = _count(cfg_channels, in_channels)
    eps = model_out[:, :guided_channels].to(torch.promote_types(model_out.dtype, torch.float32))
    cond, null = eps.chunk(2)
    guided = (null + cfg_scale * (cond - null)).to(model_out.dtype)
    return torch.cat([torch.cat([guided, guided]), model_out[:, guided_channels:]], dim=1)


def _count(cfg_channels: CfgChannels, in_channels: int) -> int:
    if cfg_channels == "all":
        return in_channels
    if isinstance(cfg_channels, int) and not isinstance(cfg_channels, bool):
        if cfg_channels == 3:
            return min(3, in_channels)
        if 1 <= cfg_channels <= in_channels:
            return cfg_channels
    raise ValueError(
        f"cfg_channels: expected 'all', 3 or a count from 1 to in_channels={in_channels}, "
        f"came {cfg_channels!r}"
    )


def with_guidance(
    model: Callable[..., Tensor],
    cfg_scale: float | Tensor,
    null_y: int | Tensor,
    cfg_channels: CfgChannels = 3,
) -> Callable[..., Tensor]:
    """Make any conditional model(x, t, y, **kwargs) a guided one of the same signature, to be given to a
    sampler.

    The result runs the model once on the doubled batch ([x, x], [t, t], [y, null_y]) and returns the guided
    conditional half: x (N,C,H,W), t (N,), y (N, ...) -> (N, C or 2C, H, W). Unlike a `forward_with_cfg`, the
    caller doubles nothing. Variance channels, and noise channels that `cfg_channels` leaves out, are the
    conditional ones.

    null_y: the label of "no condition", an int or a tensor that broadcasts to y. Other keyword arguments go
    to the model as they are. See `guide` for cfg_scale and cfg_channels.
    """

    def guided_model(x: Tensor, t: Tensor, y: Tensor, **kwargs: Any) -> Tensor:
        null = torch.full_like(y, null_y) if isinstance(null_y, int) else null_y.to(y).expand_as(y)
        out = model(torch.cat([x, x]), torch.cat([t, t]), torch.cat([y, null]), **kwargs)
        return guide(out, cfg_scale, cfg_channels, in_channels=x.shape[1]).chunk(2)[0]

    return guided_model
