// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <optional>
#include <tuple>

#include "common/stable.h"

namespace dit {

// x (..., K), weight (F, K), bias (F,), all dense -> y (..., F), and u (M, F), or (0, F) unless `keep`; on the CPU.
std::tuple<Tensor, Tensor> linear_forward(Tensor x, Tensor weight, std::optional<Tensor> bias, bool gelu, bool keep);

}  // namespace dit
