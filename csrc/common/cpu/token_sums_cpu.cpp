// SPDX-License-Identifier: Apache-2.0
#include "common/token_sums.h"

#include "common/cpu/vec.h"

namespace dit::DIT_ISA {

void finish_token_sums(const TokenSums& a, int64_t begin, int64_t end) {
  const int64_t d = a.dim, step = a.count * d;
  dispatch(a.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    for (int64_t n = begin; n < end; ++n)
      for (int64_t k = 0; k < a.count; ++k) {
        const float* from = a.partial + n * a.chunks * step + k * d;
        T* to = static_cast<T*>(a.out[k]) + n * d;
        sweep(d, [&](int64_t i, auto lanes) {
          F total = {};
          for (int64_t c = 0; c < a.chunks; ++c) total += load(from + c * step + i, lanes);
          store(to + i, total, lanes);
        });
      }
  });
}

}  // namespace dit::DIT_ISA
