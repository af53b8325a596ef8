// SPDX-License-Identifier: Apache-2.0
// One token's layer norm, forward and backward, on rows of D floats. Shared by the AdaLN family.
#pragma once
#include <utility>

#include "common/cpu/vec.h"

namespace dit::DIT_ISA {

struct Stats {
  float mean, rstd;
};

// The squared distances from a mean that is known.
template <class T>
inline Stats row_stats(const T* x, int64_t d, float mean, float eps) {
  const F m = splat(mean);
  const float var = sum_over(d, [&](int64_t i, auto n) {
                      const F c = load(x + i, n) - m;
                      return c * c;
                    }) / float(d);
  return {mean, 1.f / std::sqrt(var + eps)};
}

// Two passes over a row that is in cache: the mean, then the squared distances from it.
template <class T>
inline Stats row_stats(const T* x, int64_t d, float eps) {
  return row_stats(x, d, sum_over(d, [&](int64_t i, auto n) { return load(x + i, n); }) / float(d), eps);
}

// h = (x - mean) * rstd * (1 + scale) + shift
template <class T, class Out>
inline void row_modulate(const T* x, const T* shift, const T* scale, Out* h, int64_t d, Stats s) {
  const F mean = splat(s.mean), rstd = splat(s.rstd), one = splat(1.f);
  sweep(d, [&](int64_t i, auto n) {
    const F xhat = (load(x + i, n) - mean) * rstd;
    store(h + i, xhat * (one + load(scale + i, n)) + load(shift + i, n), n);
  });
}

// With g = dh * (1 + scale): the two means that the gradient of a norm needs, and this token's share of the sums
// dshift += dh and dscale += dh * xhat.
template <class G, class T>
inline std::pair<float, float> row_grad_sums(const G* dh, const T* x, const T* scale, Stats s, float* dshift,
                                             float* dscale, int64_t d) {
  const F mean = splat(s.mean), rstd = splat(s.rstd), one = splat(1.f);
  F sum_g = {}, sum_gx = {};
  sweep(d, [&](int64_t i, auto n) {
    const F dhv = load(dh + i, n), xhat = (load(x + i, n) - mean) * rstd;
    const F dhx = dhv * xhat, factor = one + load(scale + i, n);
    store(dshift + i, load(dshift + i, n) + dhv, n);
    store(dscale + i, load(dscale + i, n) + dhx, n);
    sum_g += keep(dhv * factor, n);
    sum_gx += keep(dhx * factor, n);
  });
  return {sum(sum_g) / float(d), sum(sum_gx) / float(d)};
}

// rstd * (g - mean(g) - xhat * mean(g * xhat)), handed to emit(i, value, n).
template <class G, class T, class Emit>
inline void row_grad(const G* dh, const T* x, const T* scale, Stats s, float mean_g, float mean_gx, int64_t d,
                     Emit&& emit) {
  const F mean = splat(s.mean), rstd = splat(s.rstd), one = splat(1.f), mg = splat(mean_g), mgx = splat(mean_gx);
  sweep(d, [&](int64_t i, auto n) {
    const F xhat = (load(x + i, n) - mean) * rstd;
    emit(i, rstd * (load(dh + i, n) * (one + load(scale + i, n)) - mg - xhat * mgx), n);
  });
}

}  // namespace dit::DIT_ISA
