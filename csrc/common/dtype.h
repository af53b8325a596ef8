// SPDX-License-Identifier: Apache-2.0
// Element types of kernels, without torch. Storage only: arithmetic is float32.
#pragma once
#include <cstdint>

namespace dit {

enum class Dtype { f32, bf16, f16 };

struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

constexpr int64_t size_of(Dtype t) { return t == Dtype::f32 ? 4 : 2; }

// Calls f with a null pointer of the element type, so that a generic lambda can name it.
template <class F>
inline void dispatch(Dtype t, F&& f) {
  switch (t) {
    case Dtype::f32: return f(static_cast<float*>(nullptr));
    case Dtype::bf16: return f(static_cast<bf16*>(nullptr));
    case Dtype::f16: return f(static_cast<f16*>(nullptr));
  }
}

}  // namespace dit
