# SPDX-License-Identifier: Apache-2.0
"""Multi-head softmax attention, every token with every token: packed qkv or separate q, k, v."""

from torch import Tensor

from .._core import autocast, check_same, check_tensor, fail
from .autograd import OP
from .reference import attention as reference


def attention(q: Tensor, k: Tensor | None = None, v: Tensor | None = None, *, scale: float | None = None) -> Tensor:
    """Non-causal attention of H heads of width Dh, without transposes before or after.

    out = softmax(scale * q k^T) v   (Vaswani et al., arXiv 1706.03762, equation 1)

    Args:
        q: packed, (N, T, 3, H, Dh): the output of a qkv Linear, viewed; k and v are then None. Or the queries
            alone, (N, Tq, H, Dh). float32, bfloat16 or float16 (float64 on the reference backend).
        k, v: (N, Tk, H, Dh), same dtype and device as q; Tk may differ from Tq and is at least 1.
            All three may be strided views, which are not copied as long as the last dimension is dense.
        scale: factor of the logits, Dh**-0.5 by default.

    Returns:
        (N, Tq, H*Dh) in q's dtype, contiguous, ready for the output Linear. Logits, softmax and sums are float32.
        Under autocast the inputs are cast to its dtype, as PyTorch casts those of scaled_dot_product_attention.

    Raises:
        ValueError: k without v, or an argument's shape, dtype or device does not fit q.
        BackendUnavailable: a backend was asked for by name and cannot run.
    """
    if (k is None) != (v is None):
        present, absent = ("v", "k") if k is None else ("k", "v")
        fail("attention", absent, f"a tensor when `{present}` is one", "None")
    if k is None or v is None:
        check_tensor("attention", "q", q, ("N", "T", 3, "H", "Dh"))
    else:
        check_tensor("attention", "q", q, ("N", "Tq", "H", "Dh"))
        n, tq, h, dh = q.shape
        check_tensor("attention", "k", k, (n, "Tk", h, dh))
        check_tensor("attention", "v", v, tuple(k.shape))
        if k.shape[1] == 0 and tq != 0:
            fail("attention", "k", "of at least one token", f"shape {tuple(k.shape)}")
    q, k, v = autocast(q, k, v, matmul=True)
    check_same("attention", {"q": q, "k": k, "v": v})
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    backend = OP.select(q) if k is None or v is None else OP.select(q, k, v)
    if backend == "reference":
        return reference(q, k, v, scale=scale)
    return OP.forward(q, k, v, scale, backend)[0]
