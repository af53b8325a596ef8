// SPDX-License-Identifier: Apache-2.0
// CUDA kernels of adaln. x, h, dh, dx (N, T, D); shift, scale (N, D) with row strides; mean, rstd (N, T) float32.
//
//   h  = xhat * (1 + scale) + shift,                     xhat = (x - mean) * rstd
//   dx = rstd * (g - mean(g) - xhat * mean(g * xhat)),   g = dh * (1 + scale)
//   dshift = sum_T dh,   dscale = sum_T dh * xhat
//
// Grid and threads as in rows.cuh: a block walks one chunk of a sample's tokens. Each way is one pass over the tokens:
// forward reads x and writes h, backward reads dh and x and writes dx and, per chunk, two rows of float32 sums that
// token_sums.cu finishes. Arithmetic is float32; saved for backward: x, scale, mean, rstd.
#pragma once
#include "common/cuda/layernorm.cuh"
#include "ops/adaln/adaln.h"

namespace dit {

template <class R>
__global__ void __launch_bounds__(R::kMaxThreads, R::kMoreBlocks)
    adaln_forward_kernel(AdalnForward a, int64_t chunk, int64_t chunks) {
  using T = typename R::T;
  constexpr int kTokens = R::template kTokens<kTuning.norm_forward>;
  __shared__ NormRoom<R, kTokens> room;
  const Place<R> at(a.dim);
  const Chunk mine(chunk, chunks, a.tokens);
  int turn = 0;
  for (int64_t start = mine.first; start < mine.last; start += kTokens * at.groups) {
    Vec<T> x[kTokens];
#pragma unroll
    for (int r = 0; r < kTokens; ++r) {
      const int64_t t = start + r * at.groups + at.group;
      x[r] = at.load(a.x, mine.sample * a.tokens + t, t < mine.last);
    }
    float mean[kTokens], rstd[kTokens];
    row_stats<R>(x, a.eps, at, room, turn, mean, rstd);
    const Vec<T> shift = at.modulation(a.shift, mine.sample, a.shift_stride);  // again and again, from L1: registers
    const Vec<T> scale = at.modulation(a.scale, mine.sample, a.scale_stride);  // are short until here
#pragma unroll
    for (int r = 0; r < kTokens; ++r) {
      const int64_t t = start + r * at.groups + at.group, row = mine.sample * a.tokens + t;
      at.store(a.h, row, t < mine.last, modulate(x[r], mean[r], rstd[r], shift, scale));
      if (threadIdx.x == 0 && t < mine.last) {
        a.mean[row] = mean[r];
        a.rstd[row] = rstd[r];
      }
    }
  }
}

template <class R>
__global__ void __launch_bounds__(R::kMaxThreads, R::kMoreBlocks) adaln_backward_kernel(AdalnBackward a) {
  using T = typename R::T;
  constexpr int kTokens = R::template kTokens<kTuning.norm_backward>;
  __shared__ SumRoom<2 * kTokens, R::kHalfWarps> room;
  __shared__ GroupRoom<R> ends;
  const Place<R> at(a.dim);
  const Chunk mine(a.chunk, a.chunks, a.tokens);
  const Vec<T> scale = at.modulation(a.scale, mine.sample, a.scale_stride);
  float sums[2][kVec<T>] = {};  // of dshift, dscale
  int turn = 0;
  for (int64_t start = mine.first; start < mine.last; start += kTokens * at.groups) {
    Vec<T> dh[kTokens], x[kTokens];
    float mean[kTokens], rstd[kTokens], means[2 * kTokens];
#pragma unroll
    for (int r = 0; r < kTokens; ++r) {
      const int64_t t = start + r * at.groups + at.group, row = mine.sample * a.tokens + t;
      dh[r] = at.load(a.dh, row, t < mine.last);
      x[r] = at.load(a.x, row, t < mine.last);
      mean[r] = t < mine.last ? a.mean[row] : 0.f;
      rstd[r] = t < mine.last ? a.rstd[row] : 0.f;
    }
    norm_gradient_sums<R>(dh, x, mean, rstd, scale, at, room, turn, means, sums[0], sums[1]);
#pragma unroll
    for (int r = 0; r < kTokens; ++r) {
      const int64_t t = start + r * at.groups + at.group;
      float dx[kVec<T>];
      norm_gradient(dh[r], x[r], mean[r], rstd[r], means[2 * r], means[2 * r + 1], scale, dx);
      Vec<T> packed;
      pack(dx, packed);
      at.store(a.dx, mine.sample * a.tokens + t, t < mine.last, packed);
    }
  }
  write_token_sums(a.partial, sums, ends, at);
}

}  // namespace dit
