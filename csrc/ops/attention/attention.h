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

DIT_CPU_KERNEL(attention_forward, AttentionForward)    // items: the N * H heads
DIT_CPU_KERNEL(attention_backward, AttentionBackward)  // items: the N * H heads

int attention_forward_cuda(const AttentionForward& a, void* stream);
int attention_backward_cuda(const AttentionBackward& a, void* stream);
int64_t attention_backward_scratch_cuda(const AttentionBackward& a);

}  // namespace dit
