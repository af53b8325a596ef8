// SPDX-License-Identifier: Apache-2.0
// Arguments of gated_residual's kernels. x, y, out, dout, dy (N, T, D); gate (N, D) with a row stride.
#pragma once
#include "common/cpu/isa.h"
#include "common/dtype.h"

namespace dit {

struct GatedResidualForward {
  const void *x, *y, *gate;
  void* out;
  int64_t batch, tokens, dim, gate_stride;
  Dtype dtype;
};

struct GatedResidualBackward {
  const void *dout, *y, *gate;
  void* dy;
  float* partial;  // (N, chunks, 1, D): sums of dgate; see token_sums.h
  int64_t batch, tokens, dim, gate_stride, chunk, chunks;
  Dtype dtype;
};

DIT_CPU_KERNEL(gated_residual_forward, GatedResidualForward)    // items: the N * T tokens
DIT_CPU_KERNEL(gated_residual_backward, GatedResidualBackward)  // items: the N * chunks pieces of token_sums.h

int gated_residual_forward_cuda(const GatedResidualForward& a, void* stream);
int gated_residual_backward_cuda(const GatedResidualBackward& a, void* stream);

}  // namespace dit
