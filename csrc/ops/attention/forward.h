// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "common/stable.h"

namespace dit {

// Packed qkv (N, T, 3, H, Dh) -> (N, T, H*Dh), on the CPU, with scale Dh^-0.5.
Tensor self_attention_forward(const Tensor& qkv);

}  // namespace dit
