# SPDX-License-Identifier: Apache-2.0
"""The final layer: adaptive layer norm, a Linear to p*p*C features a token, and the tokens laid out as an image."""

from torch import Tensor

from .._core import autocast, check_same, check_tensor, fail, without_autocast
from .autograd import OP
from .reference import final_layer as reference


def final_layer(
    x: Tensor,
    shift: Tensor | None,
    scale: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    *,
    grid: tuple[int, int],
    patch_size: int,
    eps: float = 1e-6,
) -> Tensor:
    """Turn tokens into an image.

    y = (LN(x) * (1 + scale) + shift) weight^T + bias
    out[n, c, i*p + r, j*p + q] = y[n, i*w + j, (r*p + q)*C + c]
    (DiT, arXiv 2212.09748, section 3.2, "Transformer decoder")

    Args:
        x: (N, T, D) tokens; float32, bfloat16 or float16 (float64 on the reference backend).
        shift, scale: (N, D), same dtype and device as x; rows may be strided views. Both None: x is modulated
            already, and the norm, shift and scale are left out.
        weight: (p*p*C, D), its rows ordered by patch row, patch column, channel, the channel fastest.
        bias: (p*p*C,).
        grid: (h, w), the patches in a column and in a row of the image; h * w = T.
        patch_size: p.
        eps: added to the variance.

    Returns:
        (N, C, h*p, w*p) in x's dtype. Statistics and sums are float32. Under autocast all is float32.

    Raises:
        ValueError: an argument's shape, dtype or device does not fit, or one of shift and scale is missing.
        BackendUnavailable: a backend was asked for by name and cannot run.
    """
    op = "final_layer"
    check_tensor(op, "x", x, ("N", "T", "D"))
    n, t, d = x.shape
    if (shift is None) != (scale is None):
        missing = "shift" if shift is None else "scale"
        fail(op, missing, "a tensor, or both `shift` and `scale` None", "None")
    for name, value in (("shift", shift), ("scale", scale)):
        if value is not None:
            check_tensor(op, name, value, (n, d))
    h, w = grid
    if h < 0 or w < 0 or h * w != t:
        fail(op, "grid", f"(h, w) with h * w = {t} tokens of `x`", f"({h}, {w})")
    check_tensor(op, "weight", weight, ("p*p*C", d))
    features, p = weight.shape[0], patch_size
    if p < 1 or features == 0 or features % (p * p):
        fail(op, "patch_size", f"p >= 1 with p*p a divisor of the {features} rows of `weight`", p)
    check_tensor(op, "bias", bias, (features,))
    x, shift, scale, weight, bias = autocast(x, shift, scale, weight, bias)
    check_same(op, "x", x, shift=shift, scale=scale, weight=weight, bias=bias)
    backend = OP.select(x, weight)
    if backend == "reference":
        with without_autocast(x.device.type):  # else linear would round what was just widened
            return reference(x, shift, scale, weight, bias, grid=grid, patch_size=p, eps=eps)
    return OP(x, shift, scale, weight, bias, h, w, p, eps, backend)[0]
