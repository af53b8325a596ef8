// SPDX-License-Identifier: Apache-2.0
// Arguments of adaln's kernels. x, h, dh, dx (N, T, D); shift, scale (N, D) with row strides; mean, rstd (N, T) float32.
#pragma once
#include "common/cpu/isa.h"
#include "common/dtype.h"

namespace dit {

struct AdalnForward {
  const void *x, *shift, *scale;
  void* h;
  float *mean, *rstd;
  int64_t batch, tokens, dim, shift_stride, scale_stride;
  float eps;
  Dtype dtype;
};

struct AdalnBackward {
  const void *dh, *x, *scale;
  const float *mean, *rstd;
  void* dx;
  float* partial;  // (N, chunks, 2, D): sums of dshift, dscale; see token_sums.h
  int64_t batch, tokens, dim, scale_stride, chunk, chunks;
  Dtype dtype;
};

DIT_CPU_KERNEL(adaln_forward, AdalnForward)    // items: the N * T tokens
DIT_CPU_KERNEL(adaln_backward, AdalnBackward)  // items: the N * chunks pieces of token_sums.h

int adaln_forward_cuda(const AdalnForward& a, void* stream);
int adaln_backward_cuda(const AdalnBackward& a, void* stream);

}  // namespace dit
