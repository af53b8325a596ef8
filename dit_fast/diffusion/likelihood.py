# SPDX-License-Identifier: Apache-2.0
"""Gaussian likelihood terms, in nats and elementwise.

LEGEND: every tensor is (N, C, H, W) or broadcasts to it; N batch, C channels, H height, W width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

LN2 = math.log(2.0)
HALF_BIN = 1 / 255  # pixels 0..255 mapped to [-1, 1] lie 2/255 apart
MIN_PROBABILITY = 1e-12  # floor of one bin's probability: at most 27.6 nats, so that an outlier stays finite


def bits_per_dim(nats: Tensor) -> Tensor:
    """Mean over all dimensions but the first, nats to bits: (N, ...) -> (N,)."""
    return nats.flatten(1).mean(1) / LN2


def normal_kl(mean1: Tensor, log_variance1: Tensor, mean2: Tensor, log_variance2: Tensor) -> Tensor:
    """KL(N(mean1, e^log_variance1) || N(mean2, e^log_variance2)) in nats, elementwise."""
    log_ratio = log_variance1 - log_variance2
    return 0.5 * (torch.expm1(log_ratio) - log_ratio + (mean1 - mean2) ** 2 * torch.exp(-log_variance2))


def discretized_gaussian_nll(x: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """-ln of the mass that N(mean, e^log_variance) gives to the bin of x, in nats (DDPM, 2006.11239, eq. 13).

    A bin is x +- 1/255; the bins of x = -1 and x = 1 (and beyond) are open outwards. The normal CDF is exact
    (erfc), taken on the side of the mean where its difference does not cancel.
    """
    rate = torch.exp(-0.5 * log_variance) / math.sqrt(2.0)
    lower = ((x - mean - HALF_BIN) * rate).masked_fill(x < -0.999, -math.inf)
    upper = ((x - mean + HALF_BIN) * rate).masked_fill(x > 0.999, math.inf)
    # mass = (erfc(lower) - erfc(upper)) / 2 = (erfc(-upper) - erfc(-lower)) / 2: take the form in which the
    # nearer edge is mostly positive, where erfc keeps its relative precision.
    above = x > mean
    near = torch.where(above, lower, -upper)
    far = torch.where(above, upper, -lower)
    mass = 0.5 * (torch.erfc(near) - torch.erfc(far))
    return -mass.clamp(min=MIN_PROBABILITY).log()
