// SPDX-License-Identifier: Apache-2.0
//   x_new = round(x + gate * y),   h = xhat * (1 + scale) + shift,   xhat = (x_new - mean) * rstd
//   dx = dx_new + rstd * (g - mean(g) - xhat * mean(g * xhat)),   g = dh * (1 + scale),   dy = dx * gate
//   dgate = sum_T(dx * y),   dshift = sum_T(dh),   dscale = sum_T(dh * xhat)
// A token's rows are read from memory once and stay in cache for the passes after the first. All arithmetic float32;
// dy and dgate take dx before it is rounded. Saved for backward: x_new, y, gate, scale, mean, rstd.
#include "ops/gated_residual_adaln/gated_residual_adaln.h"

#include "common/cpu/layernorm.h"
#include "common/token_sums.h"

namespace dit::DIT_ISA {

void gated_residual_adaln_forward(const GatedResidualAdalnForward& a, int64_t begin, int64_t end) {
  dispatch(a.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const int64_t d = a.dim;
    for (int64_t r = begin; r < end; ++r) {
      const int64_t n = r / a.tokens;
      const T *x = static_cast<const T*>(a.x) + r * d, *y = static_cast<const T*>(a.y) + r * d;
      const T* gate = static_cast<const T*>(a.gate) + n * a.gate_stride;
      T* x_new = static_cast<T*>(a.x_new) + r * d;
      const float total = sum_over(d, [&](int64_t i, auto lanes) {
        store(x_new + i, load(x + i, lanes) + load(gate + i, lanes) * load(y + i, lanes), lanes);
        return load(x_new + i, lanes);  // the norm sees the rounded value
      });
      const Stats s = row_stats(x_new, d, total / float(d), a.eps);
      a.mean[r] = s.mean;
      a.rstd[r] = s.rstd;
      row_modulate(x_new, static_cast<const T*>(a.shift) + n * a.shift_stride,
                   static_cast<const T*>(a.scale) + n * a.scale_stride, static_cast<T*>(a.h) + r * d, d, s);
    }
  });
}

void gated_residual_adaln_backward(const GatedResidualAdalnBackward& a, int64_t begin, int64_t end) {
  dispatch(a.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const int64_t d = a.dim;
    for (int64_t item = begin; item < end; ++item) {
      const int64_t n = item / a.chunks, chunk = item % a.chunks;
      const T* gate = static_cast<const T*>(a.gate) + n * a.gate_stride;
      const T* scale = static_cast<const T*>(a.scale) + n * a.scale_stride;
      float *dgate = a.partial + item * 3 * d, *dshift = dgate + d, *dscale = dshift + d;
      std::fill(dgate, dgate + 3 * d, 0.f);
      const int64_t last = std::min((chunk + 1) * a.chunk, a.tokens);
      for (int64_t t = chunk * a.chunk; t < last; ++t) {
        const int64_t r = n * a.tokens + t;
        const T *dh = static_cast<const T*>(a.dh) + r * d, *x_new = static_cast<const T*>(a.x_new) + r * d;
        const T* y = static_cast<const T*>(a.y) + r * d;
        const T* dx_new = a.dx_new ? static_cast<const T*>(a.dx_new) + r * d : nullptr;
        T *dx = static_cast<T*>(a.dx) + r * d, *dy = static_cast<T*>(a.dy) + r * d;
        const Stats s = {a.mean[r], a.rstd[r]};
        const auto [mean_g, mean_gx] = row_grad_sums(dh, x_new, scale, s, dshift, dscale, d);
        row_grad(dh, x_new, scale, s, mean_g, mean_gx, d, [&](int64_t i, F v, auto lanes) {
          if (dx_new) v += load(dx_new + i, lanes);
          store(dx + i, v, lanes);
          store(dy + i, v * load(gate + i, lanes), lanes);
          store(dgate + i, load(dgate + i, lanes) + v * load(y + i, lanes), lanes);
        });
      }
    }
  });
}

}  // namespace dit::DIT_ISA
