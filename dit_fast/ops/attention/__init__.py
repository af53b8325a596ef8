# SPDX-License-Identifier: Apache-2.0
"""Multi-head softmax attention, every token with every token: packed qkv or separate q, k, v."""

from typing import Literal

import torch
from torch import Tensor

from .._core import autocast, check_same, check_tensor, fail, without_autocast
from .autograd import NORMS, OP
from .heads import unpack
from .libraries import LIBRARIES
from .reference import attention as reference
from .reference import prepare


def attention(
    q: Tensor, k: Tensor | None = None, v: Tensor | None = None, *, scale: float | None = None,
    norm: Literal["rms", "layer"] | None = None, q_weight: Tensor | None = None, k_weight: Tensor | None = None,
    q_bias: Tensor | None = None, k_bias: Tensor | None = None, eps: float = 1e-6, rope: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Non-causal attention of H heads of width Dh, without transposes before or after.

    out = softmax(scale * q k^T) v   (Vaswani et al., arXiv 1706.03762, equation 1)

    Queries and keys are first normalised if `norm` is given (as in ViT-22B, arXiv 2302.05442, section 2) and rotated if
    `rope` is (arXiv 2104.09864, equation 34): in one pass, in float32, rounded to q's dtype once.

    Args:
        q: packed, (N, T, 3, H, Dh): the output of a qkv Linear, viewed; k and v are then None. Or the queries
            alone, (N, Tq, H, Dh). float32, bfloat16 or float16 (float64 on the reference backend).
        k, v: (N, Tk, H, Dh), same dtype and device as q; Tk may differ from Tq and is at least 1.
            All three may be strided views, which are not copied as long as the last dimension is dense.
        scale: factor of the logits, Dh**-0.5 by default.
        norm: "rms" or "layer": over each head's Dh elements.
        q_weight, k_weight: (Dh,) of the norm, any floating dtype; None is 1.
        q_bias, k_bias: (Dh,) of a layer norm; None is 0.
        eps: added to the variance or mean square.
        rope: (2, T, Dh/2) cosines and sines, by which elements 2i and 2i+1 of each head are turned at each token;
            queries and keys are then of the same tokens. It is not differentiated. `dit_fast.nn.rope_2d` makes one.

    Returns:
        (N, Tq, H*Dh) in q's dtype, contiguous, ready for the output Linear. Logits, softmax and sums are float32.
        Under autocast the inputs are cast to its dtype, as PyTorch casts those of scaled_dot_product_attention.

    Raises:
        ValueError: k without v, an argument's shape, dtype or device does not fit q, or a norm's weight without it.
        BackendUnavailable: a backend was asked for by name and cannot run.
    """
    _check_heads(q, k, v)
    weights = {"q_weight": q_weight, "q_bias": q_bias, "k_weight": k_weight, "k_bias": k_bias}
    _check_preparation(q, k, norm, weights, rope)
    q, k, v = autocast(q, k, v, matmul=True)
    check_same("attention", "q", q, k=k, v=v)
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    backend = OP.select(q) if k is None or v is None else OP.select(q, k, v)
    if backend == "reference":
        return reference(
            q, k, v, scale=scale, norm=norm, q_weight=q_weight, k_weight=k_weight, q_bias=q_bias, k_bias=k_bias,
            eps=eps, rope=rope,
        )  # fmt: skip
    if backend in LIBRARIES:
        q, k, v = unpack(q, k, v)
        with without_autocast(q.device.type):
            q = prepare(q, norm, q_weight, q_bias, eps, rope)
            k = prepare(k, norm, k_weight, k_bias, eps, rope)
            return LIBRARIES[backend][0](q, k, v, scale).flatten(2)
    affine = _affine(q, weights)
    rope = None if rope is None else rope.detach().float().contiguous()
    return OP(q, k, v, affine, rope, scale, NORMS[norm], eps, backend)[0]


def _check_heads(q: Tensor, k: Tensor | None, v: Tensor | None) -> None:
    if (k is None) != (v is None):
        present, absent = ("v", "k") if k is None else ("k", "v")
        fail("attention", absent, f"a tensor when `{present}` is one", "None")
    if k is None or v is None:
        check_tensor("attention", "q", q, ("N", "T", 3, "H", "Dh"))
        return
    check_tensor("attention", "q", q, ("N", "Tq", "H", "Dh"))
    n, tq, h, dh = q.shape
    check_tensor("attention", "k", k, (n, "Tk", h, dh))
    check_tensor("attention", "v", v, tuple(k.shape))
    if k.shape[1] == 0 and tq != 0:
        fail("attention", "k", "of at least one token", f"shape {tuple(k.shape)}")


def _check_preparation(
    q: Tensor, k: Tensor | None, norm: str | None, weights: dict[str, Tensor | None], rope: Tensor | None
) -> None:
    if norm not in NORMS:
        fail("attention", "norm", "'rms', 'layer' or None", repr(norm))
    dh = q.shape[-1]
    for name, weight in weights.items():
        if weight is None:
            continue
        if norm is None or (norm == "rms" and name.endswith("bias")):
            fail("attention", name, f"None where `norm` is {norm!r}", f"shape {tuple(weight.shape)}")
        check_tensor("attention", name, weight, (dh,))
        if weight.device != q.device:
            fail("attention", name, f"on {q.device} like `q`", weight.device)
    if rope is None:
        return
    if dh % 2:
        fail("attention", "q", "of an even head width where `rope` is given", f"{dh}")
    check_tensor("attention", "rope", rope, (2, q.shape[1], dh // 2))
    if k is not None and k.shape[1] != q.shape[1]:
        fail("attention", "k", f"of {q.shape[1]} tokens like `q` where `rope` is given", f"{k.shape[1]}")
    if rope.device != q.device:
        fail("attention", "rope", f"on {q.device} like `q`", rope.device)


def _affine(q: Tensor, weights: dict[str, Tensor | None]) -> Tensor | None:
    """(4, Dh) float32: q weight, q bias, k weight, k bias; None where all are."""
    if all(weight is None for weight in weights.values()):
        return None
    dh = q.shape[-1]
    neutral = {"weight": torch.ones, "bias": torch.zeros}
    rows = [
        neutral[name[2:]](dh, dtype=torch.float32, device=q.device) if weight is None else weight.float()
        for name, weight in weights.items()
    ]
    return torch.stack(rows)
