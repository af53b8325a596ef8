// SPDX-License-Identifier: Apache-2.0
// Arguments of attention's kernels. N batch, Tq queries, Tk keys, H heads, Dh head width.
// q, dq (N, Tq, H, Dh), k, v, dk, dv (N, Tk, H, Dh), see heads.h; out, dout (N, Tq, H*Dh) dense; lse (N, H, Tq) float32.
// Queries and keys arrive normalised and rotated (prepare.h).
#pragma once
#include "common/cpu/isa.h"
#include "common/dtype.h"
#include "ops/attention/heads.h"

namespace dit {

struct AttentionForward {
  Heads q, k, v;
  void* out;
  float* lse;
  int64_t batch, queries, keys, heads, dim;
  float scale;
  Dtype dtype;
};

struct AttentionBackward {
  Heads q, k, v;
  const void *dout, *out;
  const float* lse;
  MutableHeads dq, dk, dv;
  float* scratch;  // CUDA: attention_backward_scratch_cuda(...) floats, at a multiple of 16 bytes
  int64_t batch, queries, keys, heads, dim;
  float scale;
  Dtype dtype;
};

constexpr int64_t kCpuQueries = 96;  // queries of one head that an item of the CPU's forward has
inline int64_t attention_blocks(int64_t queries) { return (queries + kCpuQueries - 1) / kCpuQueries; }

DIT_CPU_KERNEL(attention_forward, AttentionForward)    // items: (sample, head, attention_blocks(queries))
DIT_CPU_KERNEL(attention_backward, AttentionBackward)  // items: (sample, head)

int attention_forward_cuda(const AttentionForward& a, void* stream);
int attention_backward_cuda(const AttentionBackward& a, void* stream);
int64_t attention_backward_scratch_cuda(const AttentionBackward& a);

}  // namespace dit
