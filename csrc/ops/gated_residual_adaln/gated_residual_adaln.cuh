// SPDX-License-Identifier: Apache-2.0
// CUDA kernels of gated_residual_adaln. x, y, x_new, h and their gradients (N, T, D); gate, shift, scale (N, D) with row
// strides; mean, rstd (N, T) float32.
//
//   x_new = round(x + gate * y),   h = xhat * (1 + scale) + shift,   xhat = (x_new - mean) * rstd
//   dx = dx_new + rstd * (g - mean(g) - xhat * mean(g * xhat)),   g = dh * (1 + scale),   dy = dx * gate
//   dgate = sum_T dx * y,   dshift = sum_T dh,   dscale = sum_T dh * xhat
//
// Grid and threads as in rows.cuh: a block walks one chunk of a sample's tokens. Each way is one pass over the tokens:
// forward reads x, y and writes x_new, h; backward reads dh, dx_new, x_new, y, writes dx, dy and, per chunk, three rows
// of float32 sums that token_sums.cu finishes. The norm sees x_new rounded to its storage dtype, as eager's does; dy and
// dgate take dx before it is rounded. Arithmetic is float32; saved for backward: x_new, y, gate, scale, mean, rstd.
#pragma once
#include "common/cuda/gate.cuh"
#include "common/cuda/layernorm.cuh"
#include "ops/gated_residual_adaln/gated_residual_adaln.h"

namespace dit {

template <class R, int kTokens>
__global__ void __launch_bounds__(R::kMaxThreads, R::kMinBlocks)
    gated_residual_adaln_forward_kernel(GatedResidualAdalnForward a, int64_t chunk, int64_t chunks) {
  using T = typename R::T;
  __shared__ NormRoom<R, kTokens> room;
  const Place<R> at(a.dim);
  const Chunk mine(chunk, chunks, a.tokens);
  const Vec<T> gate = at.modulation(a.gate, mine.sample, a.gate_stride);
  const Vec<T> shift = at.modulation(a.shift, mine.sample, a.shift_stride);
  const Vec<T> scale = at.modulation(a.scale, mine.sample, a.scale_stride);
  int turn = 0;
  for (int64_t start = mine.first; start < mine.last; start += kTokens * at.groups) {
    Vec<T> x[kTokens], y[kTokens];
#pragma unroll
    for (int r = 0; r < kTokens; ++r) {
      const int64_t t = start + r * at.groups + at.group, row = mine.sample * a.tokens + t;
      x[r] = at.load(a.x, row, t < mine.last);
      y[r] = at.load(a.y, row, t < mine.last);
    }
#pragma unroll
    for (int r = 0; r < kTokens; ++r) {
      const int64_t t = start + r * at.groups + at.group;
      x[r] = add_gated(x[r], y[r], gate);
      at.store(a.x_new, mine.sample * a.tokens + t, t < mine.last, x[r]);
    }
    float mean[kTokens], rstd[kTokens];
    row_stats<R>(x, a.eps, at, room, turn, mean, rstd);
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

template <class R, int kTokens>
__global__ void __launch_bounds__(R::kMaxThreads, R::kMinBlocks)
    gated_residual_adaln_backward_kernel(GatedResidualAdalnBackward a) {
  using T = typename R::T;
  __shared__ SumRoom<2 * kTokens, R::kHalfWarps> room;
  __shared__ GroupRoom<R> ends;
  const Place<R> at(a.dim);
  const Chunk mine(a.chunk, a.chunks, a.tokens);
  float sums[3][kVec<T>] = {};  // of dgate, dshift, dscale
  int turn = 0;
  for (int64_t start = mine.first; start < mine.last; start += kTokens * at.groups) {
    Vec<T> y[kTokens], dx_new[kTokens];
    float means[2 * kTokens];
    {
      const Vec<T> scale = at.modulation(a.scale, mine.sample, a.scale_stride);
      Vec<T> dh[kTokens], x_new[kTokens];
      float mean[kTokens], rstd[kTokens];
#pragma unroll
      for (int r = 0; r < kTokens; ++r) {
        const int64_t t = start + r * at.groups + at.group, row = mine.sample * a.tokens + t;
        dh[r] = at.load(a.dh, row, t < mine.last);
        x_new[r] = at.load(a.x_new, row, t < mine.last);
        y[r] = at.load(a.y, row, t < mine.last);
        dx_new[r] = at.load(a.dx_new, row, t < mine.last && a.dx_new != nullptr);
        mean[r] = t < mine.last ? a.mean[row] : 0.f;
        rstd[r] = t < mine.last ? a.rstd[row] : 0.f;
      }
      norm_gradient_sums<R>(dh, x_new, mean, rstd, scale, at, room, turn, means, sums[1], sums[2]);
    }
    const Vec<T> scale = at.modulation(a.scale, mine.sample, a.scale_stride);
    const Vec<T> gate = at.modulation(a.gate, mine.sample, a.gate_stride);
#pragma unroll
    for (int r = 0; r < kTokens; ++r) {
      const int64_t t = start + r * at.groups + at.group, row = mine.sample * a.tokens + t;
      if (t >= mine.last) continue;
      float dx[kVec<T>], residual[kVec<T>];
      norm_gradient(at.load(a.dh, row, true), at.load(a.x_new, row, true), a.mean[row], a.rstd[row], means[2 * r],
                    means[2 * r + 1], scale, dx);
      unpack(dx_new[r], residual);
#pragma unroll
      for (int i = 0; i < kVec<T>; ++i) dx[i] += residual[i];
      Vec<T> packed;
      pack(dx, packed);
      at.store(a.dx, row, true, packed);
      at.store(a.dy, row, true, gate_gradient(dx, y[r], gate, sums[0]));
    }
  }
  write_token_sums(a.partial, sums, ends, at);
}

}  // namespace dit
