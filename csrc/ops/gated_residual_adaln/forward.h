// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <tuple>

#include "common/stable.h"

namespace dit {

// x, y (N, T, D), gate, shift, scale (N, D) -> x_new, h (N, T, D), mean, rstd (N, T), on the CPU.
std::tuple<Tensor, Tensor, Tensor, Tensor> gated_residual_adaln_forward_cpu(Tensor x, Tensor y, Tensor gate,
                                                                            Tensor shift, Tensor scale, double eps);

}  // namespace dit
