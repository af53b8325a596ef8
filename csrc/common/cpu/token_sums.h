// SPDX-License-Identifier: Apache-2.0
// Sums over the tokens of a sample, deterministic whatever the number of threads.
//
// The T tokens of a sample are cut into chunks of kChunk. A work item is one (sample, chunk): it adds its tokens into
// K rows of D floats of its own, partial[sample][chunk][k][:]. Once all items are done, `finish_token_sums` adds the
// chunks in order, rounds to the storage dtype, and writes K tensors (N, D). Memory: K * 4 / kChunk bytes for each
// element of a token tensor.
#pragma once
#include <algorithm>
#include <cstdint>

#include "common/cpu/isa.h"
#include "common/dtype.h"

namespace dit {

constexpr int64_t kChunk = 64;
inline int64_t token_chunks(int64_t tokens) { return (tokens + kChunk - 1) / kChunk; }

struct TokenSums {
  const float* partial;  // (N, chunks, count, D)
  void* out[3];          // count tensors (N, D)
  int64_t count, chunks, dim;
  Dtype dtype;
};

// Items are the samples 0..N.
DIT_CPU_KERNEL(finish_token_sums, TokenSums)

}  // namespace dit
