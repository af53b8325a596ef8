// SPDX-License-Identifier: Apache-2.0
// CPU kernels of final_layer. x, dx (N, T, D); shift, scale (N, D) with row strides, or null: then h = x; weight
// (O, D), O = p*p*C; bias (O,); out, dout (N, C, h*p, w*p); mean, rstd (N, T) float32.
#pragma once
#include <algorithm>

#include "common/cpu/isa.h"
#include "common/cpu/panels.h"
#include "common/cpu/patches.h"
#include "common/dtype.h"

namespace dit {

constexpr int64_t kFinalPiece = 48;  // most tokens whose h is held at a time in the backward
static_assert(kFinalPiece % kTileRows == 0, "a piece is made of whole tiles");

struct FinalLayerForward {
  const void *x, *shift, *scale, *bias;
  const float* panels;  // weight^T (D, O); see panels.h
  void* out;
  float *mean, *rstd;
  int64_t tokens, dim, shift_stride, scale_stride;  // tokens: N * T
  float eps;
  PatchGrid grid;
  Dtype dtype;
};

struct FinalLayerBackward {
  const void *dout, *x, *shift, *scale;
  const float *panels, *mean, *rstd;  // panels of weight (O, D)
  void* dx;
  float* token_sums;   // (N, pieces, 2, D): sums of dshift, dscale; see token_sums.h
  float* weight_sums;  // (O, groups, D)
  float* bias_sums;    // (groups, O)
  int64_t batch, dim, shift_stride, scale_stride, pieces, groups;  // pieces of a sample
  PatchGrid grid;
  Dtype dtype;
};

DIT_CPU_KERNEL(final_layer_forward, FinalLayerForward)    // items: tiles of kTileRows tokens
DIT_CPU_KERNEL(final_layer_backward, FinalLayerBackward)  // items: the groups of consecutive pieces

}  // namespace dit
