// SPDX-License-Identifier: Apache-2.0
// Layer norm on the threads of rows.cuh: kTokens rows at once, one vector of each in a thread. All float32.
#pragma once
#include "common/cuda/rows.cuh"

namespace dit {

template <class R, int kTokens>
using NormRoom = SumRoom<kTokens, R::kHalfWarps>;

// Mean and 1 / sqrt(variance + eps) of each row: the mean first, then the squared distances from it.
template <class R, int kTokens>
DIT_DEVICE void row_stats(const Vec<typename R::T> (&x)[kTokens], float eps, const Place<R>& at,
                          NormRoom<R, kTokens>& room, int& turn, float (&mean)[kTokens], float (&rstd)[kTokens]) {
  constexpr int kWidth = kVec<typename R::T>;
#pragma unroll
  for (int r = 0; r < kTokens; ++r) {
    float value[kWidth];
    unpack(x[r], value);
    mean[r] = 0.f;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) mean[r] += value[i];
  }
  sum_rows(mean, room, turn, at);
#pragma unroll
  for (int r = 0; r < kTokens; ++r) {
    float value[kWidth];
    unpack(x[r], value);
    mean[r] /= at.dim;
    rstd[r] = 0.f;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) rstd[r] += (value[i] - mean[r]) * (value[i] - mean[r]);
    if (!at.active) rstd[r] = 0.f;
  }
  sum_rows(rstd, room, turn, at);
#pragma unroll
  for (int r = 0; r < kTokens; ++r) rstd[r] = 1.f / sqrtf(rstd[r] / at.dim + eps);
}

// h = (x - mean) * rstd * (1 + scale) + shift
template <class T>
DIT_DEVICE Vec<T> modulate(const Vec<T>& x, float mean, float rstd, const Vec<T>& shift, const Vec<T>& scale) {
  float value[kVec<T>], b[kVec<T>], a[kVec<T>];
  unpack(x, value);
  unpack(shift, b);
  unpack(scale, a);
#pragma unroll
  for (int i = 0; i < kVec<T>; ++i) value[i] = (value[i] - mean) * rstd * (1.f + a[i]) + b[i];
  Vec<T> h;
  pack(value, h);
  return h;
}

// With g = dh * (1 + scale): mean(g) and mean(g * xhat) of each row, interleaved, and this thread's share of
// dshift += dh, dscale += dh * xhat. Rows that do not exist must hold dh = 0 and rstd = 0.
template <class R, int kTokens>
DIT_DEVICE void norm_gradient_sums(const Vec<typename R::T> (&dh)[kTokens], const Vec<typename R::T> (&x)[kTokens],
                                   const float (&mean)[kTokens], const float (&rstd)[kTokens],
                                   const Vec<typename R::T>& scale, const Place<R>& at,
                                   SumRoom<2 * kTokens, R::kHalfWarps>& room, int& turn, float (&means)[2 * kTokens],
                                   float (&dshift)[kVec<typename R::T>], float (&dscale)[kVec<typename R::T>]) {
  constexpr int kWidth = kVec<typename R::T>;
  float a[kWidth];
  unpack(scale, a);
#pragma unroll
  for (int r = 0; r < kTokens; ++r) {
    float grad[kWidth], value[kWidth];
    unpack(dh[r], grad);
    unpack(x[r], value);
    means[2 * r] = means[2 * r + 1] = 0.f;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      const float xhat = (value[i] - mean[r]) * rstd[r], g = grad[i] * (1.f + a[i]);
      dshift[i] += grad[i];
      dscale[i] += grad[i] * xhat;
      means[2 * r] += g;
      means[2 * r + 1] += g * xhat;
    }
  }
  sum_rows(means, room, turn, at);
#pragma unroll
  for (int i = 0; i < 2 * kTokens; ++i) means[i] /= at.dim;
}

// rstd * (g - mean(g) - xhat * mean(g * xhat))
template <class T>
DIT_DEVICE void norm_gradient(const Vec<T>& dh, const Vec<T>& x, float mean, float rstd, float mean_g, float mean_gx,
                              const Vec<T>& scale, float (&dx)[kVec<T>]) {
  float grad[kVec<T>], value[kVec<T>], a[kVec<T>];
  unpack(scale, a);
  unpack(dh, grad);
  unpack(x, value);
#pragma unroll
  for (int i = 0; i < kVec<T>; ++i) {
    const float xhat = (value[i] - mean) * rstd;
    dx[i] = rstd * (grad[i] * (1.f + a[i]) - mean_g - xhat * mean_gx);
  }
}

}  // namespace dit
