// SPDX-License-Identifier: Apache-2.0
// Arguments of gated_residual_adaln's kernels. x, y, x_new, h and their gradients (N, T, D); gate, shift, scale (N, D)
// with row strides; mean, rstd (N, T) float32.
#pragma once
#include "common/cpu/isa.h"
#include "common/dtype.h"

namespace dit {

struct GatedResidualAdalnForward {
  const void *x, *y, *gate, *shift, *scale;
  void *x_new, *h;
  float *mean, *rstd;
  int64_t batch, tokens, dim, gate_stride, shift_stride, scale_stride;
  float eps;
  Dtype dtype;
};

struct GatedResidualAdalnBackward {
  const void* dx_new;  // may be null: zero
  const void *dh, *x_new, *y, *gate, *scale;
  const float *mean, *rstd;
  void *dx, *dy;
  float* partial;  // (N, chunks, 3, D): sums of dgate, dshift, dscale; see token_sums.h
  int64_t batch, tokens, dim, gate_stride, scale_stride, chunk, chunks;
  Dtype dtype;
};

DIT_CPU_KERNEL(gated_residual_adaln_forward, GatedResidualAdalnForward)    // items: the N * T tokens
DIT_CPU_KERNEL(gated_residual_adaln_backward, GatedResidualAdalnBackward)  // items: the N * chunks of token_sums.h

int gated_residual_adaln_forward_cuda(const GatedResidualAdalnForward& a, void* stream);
int gated_residual_adaln_backward_cuda(const GatedResidualAdalnBackward& a, void* stream);

}  // namespace dit
