// SPDX-License-Identifier: Apache-2.0
// CPU kernels of patch_embed. x, dx (N, C, H, W); weight, dweight (D, C, p, p), K = C*p*p; bias, dbias (D,);
// pos, dpos (T, D); out, dout (N, T, D). "Tokens" are the N * T patches.
#pragma once
#include <algorithm>

#include "common/cpu/isa.h"
#include "common/cpu/panels.h"
#include "common/cpu/patches.h"
#include "common/dtype.h"

namespace dit {

constexpr int64_t kPatchBlock = 64;  // tokens whose patches are gathered at a time for dweight

struct PatchEmbedForward {
  const void *x, *bias, *pos;  // bias may be null
  const float* panels;         // weight^T (K, D); see panels.h
  void* out;
  int64_t tokens, dim;
  PatchGrid grid;
  Dtype dtype;
};

struct PatchEmbedWeightGrad {
  const void *dout, *x;
  float* partial;  // (chunks, K + 1, D): sums of dweight^T and, last, of dbias over a chunk's tokens
  int64_t tokens, dim, chunk;  // tokens a chunk, a multiple of kPatchBlock
  PatchGrid grid;
  Dtype dtype;
};

struct PatchEmbedWeightSum {
  const float* partial;
  void *dweight, *dbias;  // either may be null
  int64_t chunks, dim, pixels;
  Dtype dtype;
};

struct PatchEmbedPosGrad {
  const void* dout;
  void* dpos;
  int64_t batch, tokens, dim;  // T tokens, of one sample
  Dtype dtype;
};

struct PatchEmbedImageGrad {
  const void* dout;
  const float* panels;  // weight (D, K)
  void* dx;
  int64_t tokens, dim;
  PatchGrid grid;
  Dtype dtype;
};

DIT_CPU_KERNEL(patch_embed_forward, PatchEmbedForward)         // items: tiles of kTileRows tokens
DIT_CPU_KERNEL(patch_embed_weight_grad, PatchEmbedWeightGrad)  // items: chunks
DIT_CPU_KERNEL(patch_embed_weight_sum, PatchEmbedWeightSum)    // items: blocks of kPanelPadding columns of D
DIT_CPU_KERNEL(patch_embed_pos_grad, PatchEmbedPosGrad)        // items: the T tokens
DIT_CPU_KERNEL(patch_embed_image_grad, PatchEmbedImageGrad)    // items: tiles of kTileRows tokens

}  // namespace dit
