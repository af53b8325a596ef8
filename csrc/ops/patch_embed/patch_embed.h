// SPDX-License-Identifier: Apache-2.0
// Arguments of patch_embed's kernels. x, dx (N, C, H, W); weight, dweight (D, C, p, p), K = C*p*p; bias, dbias (D,);
// pos, dpos (T, D); out, dout (N, T, D). "Tokens" are the N * T patches. The CPU reads the weight as panels (panels.h).
#pragma once
#include <algorithm>

#include "common/cpu/isa.h"
#include "common/cpu/panels.h"
#include "common/cpu/patches.h"
#include "common/dtype.h"

namespace dit {

constexpr int64_t kPatchBlock = 64;  // tokens whose patches are gathered at a time for dweight

struct PatchEmbedForward {
  const void *x, *weight, *bias, *pos;  // bias may be null
  const float* panels;                  // CPU: weight^T (K, D)
  void* out;
  int64_t tokens, dim;
  PatchGrid grid;
  Dtype dtype;
};

struct PatchEmbedWeightGrad {
  const void *dout, *x;
  float* partial;       // sums over a chunk's tokens. CPU: (chunks, K + 1, D), dweight^T and, last, dbias
  float* bias_partial;  // CUDA: (chunks, D) for dbias, and in `partial` (chunks, D, K) for dweight
  int64_t tokens, dim, chunk;  // tokens a chunk, a multiple of kPatchBlock
  PatchGrid grid;
  Dtype dtype;
};

struct PatchEmbedWeightSum {  // CPU; CUDA uses token_sums.h
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
  const void *dout, *weight;
  const float* panels;  // CPU: weight (D, K)
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

// Tokens a chunk of the weight gradient on the current GPU, from shapes and the architecture only.
int64_t patch_embed_chunk_tokens(int64_t tokens, int64_t dim, int64_t pixels);

int patch_embed_forward_cuda(const PatchEmbedForward& a, void* stream);
int patch_embed_weight_grad_cuda(const PatchEmbedWeightGrad& a, void* stream);
int patch_embed_pos_grad_cuda(const PatchEmbedPosGrad& a, void* stream);
int patch_embed_image_grad_cuda(const PatchEmbedImageGrad& a, void* stream);

}  // namespace dit
