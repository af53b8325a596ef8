// SPDX-License-Identifier: Apache-2.0
// The gated residual on one thread's vector of a row. All float32, rounded once.
#pragma once
#include "common/cuda/vec.cuh"

namespace dit {

// x + gate * y
template <class T>
DIT_DEVICE Vec<T> add_gated(const Vec<T>& x, const Vec<T>& y, const Vec<T>& gate) {
  float sum[kVec<T>], branch[kVec<T>], factor[kVec<T>];
  unpack(gate, factor);
  unpack(x, sum);
  unpack(y, branch);
#pragma unroll
  for (int i = 0; i < kVec<T>; ++i) sum[i] += factor[i] * branch[i];
  Vec<T> out;
  pack(sum, out);
  return out;
}

// dy = dx * gate; dgate += dx * y
template <class T>
DIT_DEVICE Vec<T> gate_gradient(const float (&dx)[kVec<T>], const Vec<T>& y, const Vec<T>& gate,
                                float (&dgate)[kVec<T>]) {
  float branch[kVec<T>], factor[kVec<T>], dy[kVec<T>];
  unpack(gate, factor);
  unpack(y, branch);
#pragma unroll
  for (int i = 0; i < kVec<T>; ++i) {
    dy[i] = dx[i] * factor[i];
    dgate[i] += dx[i] * branch[i];
  }
  Vec<T> out;
  pack(dy, out);
  return out;
}

}  // namespace dit
