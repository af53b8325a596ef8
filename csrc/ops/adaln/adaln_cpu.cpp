// SPDX-License-Identifier: Apache-2.0
//   h  = xhat * (1 + scale) + shift,            xhat = (x - mean) * rstd
//   dx = rstd * (g - mean(g) - xhat * mean(g * xhat)),   g = dh * (1 + scale)
// A token's row is read from memory once and stays in cache for the passes after the first. All arithmetic float32.
#include "ops/adaln/adaln.h"

#include "common/cpu/layernorm.h"
#include "common/token_sums.h"

namespace dit::DIT_ISA {

void adaln_forward(const AdalnForward& a, int64_t begin, int64_t end) {
  dispatch(a.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    for (int64_t r = begin; r < end; ++r) {
      const int64_t n = r / a.tokens;
      const T* x = static_cast<const T*>(a.x) + r * a.dim;
      const Stats s = row_stats(x, a.dim, a.eps);
      a.mean[r] = s.mean;
      a.rstd[r] = s.rstd;
      row_modulate(x, static_cast<const T*>(a.shift) + n * a.shift_stride,
                   static_cast<const T*>(a.scale) + n * a.scale_stride, static_cast<T*>(a.h) + r * a.dim, a.dim, s);
    }
  });
}

void adaln_backward(const AdalnBackward& a, int64_t begin, int64_t end) {
  dispatch(a.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const int64_t d = a.dim;
    for (int64_t item = begin; item < end; ++item) {
      const int64_t n = item / a.chunks, chunk = item % a.chunks;
      const T* scale = static_cast<const T*>(a.scale) + n * a.scale_stride;
      float *dshift = a.partial + item * 2 * d, *dscale = dshift + d;
      std::fill(dshift, dshift + 2 * d, 0.f);
      const int64_t last = std::min((chunk + 1) * a.chunk, a.tokens);
      for (int64_t t = chunk * a.chunk; t < last; ++t) {
        const int64_t r = n * a.tokens + t;
        const T *dh = static_cast<const T*>(a.dh) + r * d, *x = static_cast<const T*>(a.x) + r * d;
        T* dx = static_cast<T*>(a.dx) + r * d;
        const Stats s = {a.mean[r], a.rstd[r]};
        const auto [mean_g, mean_gx] = row_grad_sums(dh, x, scale, s, dshift, dscale, d);
        row_grad(dh, x, scale, s, mean_g, mean_gx, d, [&](int64_t i, F v, auto lanes) { store(dx + i, v, lanes); });
      }
    }
  });
}

}  // namespace dit::DIT_ISA
