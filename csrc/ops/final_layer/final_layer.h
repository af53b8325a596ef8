// SPDX-License-Identifier: Apache-2.0
// Arguments of final_layer's kernels. x, dx (N, T, D); shift, scale (N, D) with row strides, or null: then h = x;
// weight (O, D), O = p*p*C; bias (O,); out, dout (N, C, h*p, w*p); mean, rstd (N, T) float32.
#pragma once
#include <algorithm>

#include "common/cpu/isa.h"
#include "common/cpu/panels.h"
#include "common/cpu/patches.h"
#include "common/dtype.h"

namespace dit {

constexpr int64_t kFinalPiece = 48;  // most tokens whose h the CPU holds at a time in the backward
static_assert(kFinalPiece % kTileRows == 0, "a piece is made of whole tiles");

struct FinalLayerForward {
  const void *x, *shift, *scale, *bias;
  const void* weight;  // CPU: float32 panels of weight^T (D, O), see panels.h; CUDA: as it is
  void* out;
  float *mean, *rstd;
  int64_t batch, dim, shift_stride, scale_stride;
  float eps;
  PatchGrid grid;
  Dtype dtype;
};

struct FinalLayerBackward {
  const void *dout, *x, *shift, *scale;
  const void* weight;  // CPU: float32 panels of weight (O, D); CUDA: what FinalLayerTranspose makes of it
  const float *mean, *rstd;
  void* dx;
  float* token_sums;   // (N, pieces, 2, D): sums of dshift, dscale; see token_sums.h
  float* weight_sums;  // (O, groups, D)
  float* bias_sums;    // (groups, O)
  int64_t batch, dim, shift_stride, scale_stride;
  int64_t piece, pieces;         // tokens of a piece, pieces of a sample
  int64_t group_tokens, groups;  // CUDA: a group is so many of the N * T tokens; CPU: consecutive pieces
  PatchGrid grid;
  Dtype dtype;
};

// weight (O, D) to (D, O rounded up to a multiple of 32), zeros behind.
struct FinalLayerTranspose {
  const void* weight;
  void* out;
  int64_t features, dim;
  Dtype dtype;
};

DIT_CPU_KERNEL(final_layer_forward, FinalLayerForward)    // items: tiles of kTileRows tokens
DIT_CPU_KERNEL(final_layer_backward, FinalLayerBackward)  // items: the groups of consecutive pieces

int final_layer_forward_cuda(const FinalLayerForward& a, void* stream);
int final_layer_backward_cuda(const FinalLayerBackward& a, void* stream);
int final_layer_transpose_cuda(const FinalLayerTranspose& a, void* stream);

// Tokens of a group of the backward on the current GPU: groups enough to fill it, few enough to add up.
int64_t final_layer_group_tokens_cuda(int64_t tokens, int64_t dim, int64_t features, Dtype dtype);

}  // namespace dit
