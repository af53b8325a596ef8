// SPDX-License-Identifier: Apache-2.0
// CUDA kernels of gated_residual. x, y, out, dout, dy (N, T, D); gate (N, D) with a row stride.
//
//   out = x + gate * y;   dy = dout * gate,   dgate = sum_T dout * y          (dx is dout itself)
//
// Grid and threads as in rows.cuh: a block walks one chunk of a sample's tokens, each way in one pass. The backward
// writes, per chunk, one row of float32 sums that token_sums.cu finishes. Arithmetic is float32; saved for backward: y,
// gate.
#pragma once
#include "common/cuda/gate.cuh"
#include "common/cuda/rows.cuh"
#include "ops/gated_residual/gated_residual.h"

namespace dit {

template <class R, int kTokens>
__global__ void __launch_bounds__(R::kMaxThreads, R::kMinBlocks)
    gated_residual_forward_kernel(GatedResidualForward a, int64_t chunk, int64_t chunks) {
  using T = typename R::T;
  const Place<R> at(a.dim);
  const Chunk mine(chunk, chunks, a.tokens);
  const Vec<T> gate = at.modulation(a.gate, mine.sample, a.gate_stride);
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
      at.store(a.out, mine.sample * a.tokens + t, t < mine.last, add_gated(x[r], y[r], gate));
    }
  }
}

template <class R, int kTokens>
__global__ void __launch_bounds__(R::kMaxThreads, R::kMinBlocks)
    gated_residual_backward_kernel(GatedResidualBackward a) {
  using T = typename R::T;
  __shared__ GroupRoom<R> ends;
  const Place<R> at(a.dim);
  const Chunk mine(a.chunk, a.chunks, a.tokens);
  const Vec<T> gate = at.modulation(a.gate, mine.sample, a.gate_stride);
  float sums[1][kVec<T>] = {};  // of dgate
  for (int64_t start = mine.first; start < mine.last; start += kTokens * at.groups) {
    Vec<T> dout[kTokens], y[kTokens];
#pragma unroll
    for (int r = 0; r < kTokens; ++r) {
      const int64_t t = start + r * at.groups + at.group, row = mine.sample * a.tokens + t;
      dout[r] = at.load(a.dout, row, t < mine.last);
      y[r] = at.load(a.y, row, t < mine.last);
    }
#pragma unroll
    for (int r = 0; r < kTokens; ++r) {
      const int64_t t = start + r * at.groups + at.group;
      float grad[kVec<T>];
      unpack(dout[r], grad);
      at.store(a.dy, mine.sample * a.tokens + t, t < mine.last, gate_gradient(grad, y[r], gate, sums[0]));
    }
  }
  write_token_sums(a.partial, sums, ends, at);
}

}  // namespace dit
