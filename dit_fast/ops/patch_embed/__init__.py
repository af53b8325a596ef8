# SPDX-License-Identifier: Apache-2.0
"""Patch embedding: every p x p patch of an image through one Linear, plus its position embedding."""

from torch import Tensor

from .._core import autocast, check_same, check_tensor, fail, without_autocast
from .autograd import OP
from .reference import patch_embed as reference


def patch_embed(x: Tensor, weight: Tensor, bias: Tensor | None, pos: Tensor) -> Tensor:
    """Cut an image into patches, embed each linearly and add the position embedding.

    out[n, i * W/p + j, :] = weight . x[n, :, i*p:(i+1)*p, j*p:(j+1)*p] + bias + pos[i * W/p + j, :]
    (DiT, arXiv 2212.09748, section 3.2, "Patchify")

    Args:
        x: (N, C, H, W) image; float32, bfloat16 or float16 (float64 on the reference backend). H and W are
            positive multiples of the patch size p; they need not be equal.
        weight: (D, C, p, p), the weight of a Conv2d with stride p; same dtype and device as x.
        bias: (D,) or None.
        pos: (T, D) position embedding, T = (H/p) * (W/p), patches in row-major order.

    Returns:
        (N, T, D) in x's dtype. Sums are float32; the result is rounded once. Under autocast all is float32.
        Gradients are computed for the arguments that need one and for no other.

    Raises:
        ValueError: an argument's shape, dtype or device does not fit.
        BackendUnavailable: a backend was asked for by name and cannot run.
    """
    check_tensor("patch_embed", "x", x, ("N", "C", "H", "W"))
    _, c, height, width = x.shape
    check_tensor("patch_embed", "weight", weight, ("D", c, "p", "p"))
    d, _, p, columns = weight.shape
    if p != columns or p == 0:
        fail("patch_embed", "weight", f"of shape (D, {c}, p, p) with square patches", f"shape {tuple(weight.shape)}")
    if height == 0 or width == 0 or height % p or width % p:
        fail("patch_embed", "x", f"of height and width in positive multiples of p = {p}", f"shape {tuple(x.shape)}")
    if bias is not None:
        check_tensor("patch_embed", "bias", bias, (d,))
    check_tensor("patch_embed", "pos", pos, ((height // p) * (width // p), d))
    x, weight, bias, pos = autocast(x, weight, bias, pos)
    check_same("patch_embed", "x", x, weight=weight, bias=bias, pos=pos)
    backend = OP.select(x, weight, pos)
    if backend == "reference":
        with without_autocast(x.device.type):  # else conv2d would round what was just widened
            return reference(x, weight, bias, pos)
    return OP(x, weight, bias, pos, backend)
