// SPDX-License-Identifier: Apache-2.0
//   out = x + gate * y;   dy = dout * gate,   dgate = sum_T(dout * y)
// One pass over the tokens each way; all arithmetic float32. Saved for backward: y, gate.
#include "ops/gated_residual/gated_residual.h"

#include "common/token_sums.h"
#include "common/cpu/vec.h"

namespace dit::DIT_ISA {

void gated_residual_forward(const GatedResidualForward& a, int64_t begin, int64_t end) {
  dispatch(a.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    for (int64_t r = begin; r < end; ++r) {
      const T *x = static_cast<const T*>(a.x) + r * a.dim, *y = static_cast<const T*>(a.y) + r * a.dim;
      const T* gate = static_cast<const T*>(a.gate) + r / a.tokens * a.gate_stride;
      T* out = static_cast<T*>(a.out) + r * a.dim;
      sweep(a.dim, [&](int64_t i, auto n) {
        store(out + i, load(x + i, n) + load(gate + i, n) * load(y + i, n), n);
      });
    }
  });
}

void gated_residual_backward(const GatedResidualBackward& a, int64_t begin, int64_t end) {
  dispatch(a.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const int64_t d = a.dim;
    for (int64_t item = begin; item < end; ++item) {
      const int64_t n = item / a.chunks, chunk = item % a.chunks;
      const T* gate = static_cast<const T*>(a.gate) + n * a.gate_stride;
      float* dgate = a.partial + item * d;
      std::fill(dgate, dgate + d, 0.f);
      const int64_t last = std::min((chunk + 1) * a.chunk, a.tokens);
      for (int64_t t = chunk * a.chunk; t < last; ++t) {
        const int64_t r = n * a.tokens + t;
        const T *dout = static_cast<const T*>(a.dout) + r * d, *y = static_cast<const T*>(a.y) + r * d;
        T* dy = static_cast<T*>(a.dy) + r * d;
        sweep(d, [&](int64_t i, auto lanes) {
          const F dv = load(dout + i, lanes);
          store(dy + i, dv * load(gate + i, lanes), lanes);
          store(dgate + i, load(dgate + i, lanes) + dv * load(y + i, lanes), lanes);
        });
      }
    }
  });
}

}  // namespace dit::DIT_ISA
