// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "common/dtype.h"

namespace dit {

// Packed qkv (N, T, 3, H, Dh) -> out (N, T, H*Dh) and lse (N, H, T), all dense, on the CPU, with scale Dh^-0.5.
void self_attention(const void* qkv, void* out, float* lse, int64_t batch, int64_t tokens, int64_t heads, int64_t dim,
                    Dtype dtype);

}  // namespace dit
