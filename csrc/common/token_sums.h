// SPDX-License-Identifier: Apache-2.0
// Sums over the tokens of a sample, deterministic whatever the number of threads.
//
// The T tokens of a sample are cut into chunks. A work item is one (sample, chunk): it adds its tokens in order into K
// rows of D floats of its own, partial[sample][chunk][k][:]. Once all items are done, `finish_token_sums` adds the
// chunks in order, rounds to the storage dtype, and writes K tensors (N, D). Memory: K * 4 / chunk bytes for each
// element of a token tensor.
#pragma once
#include <algorithm>
#include <cstdint>

#include "common/cpu/isa.h"
#include "common/dtype.h"

namespace dit {

constexpr int64_t kCpuChunk = 64;  // tokens a chunk on the CPU

// Tokens a chunk on the current GPU: few enough chunks that partial sums are cheap, enough of them to fill it. Depends
// on shapes and the architecture only, so that results do not change from run to run.
int64_t cuda_chunk_tokens(int64_t batch, int64_t tokens);

struct TokenSums {
  const float* partial;  // (N, chunks, count, D)
  void* out[3];          // count tensors (N, D)
  int64_t batch, count, chunks, dim;
  Dtype dtype;
};

DIT_CPU_KERNEL(finish_token_sums, TokenSums)  // items: the samples 0..N
int finish_token_sums_cuda(const TokenSums& a, void* stream);

}  // namespace dit
