// SPDX-License-Identifier: Apache-2.0
// W vectors as the rows of a square, and its transpose. Include only in *_cpu.cpp files.
#pragma once
#include <utility>

#include "common/cpu/vec.h"

namespace dit::DIT_ISA {

// Lane l of one row of the result; swapping the blocks off the diagonal for every power of two transposes.
template <int B, bool Lower, int... L>
inline F swapped_blocks(F a, F b, std::integer_sequence<int, L...>) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, (Lower ? (L & B ? W + L : L + B) : (L & B ? W + L - B : L))...);
#else
  return __builtin_shuffle(a, b, I{(Lower ? (L & B ? int(W) + L : L + B) : (L & B ? int(W) + L - B : L))...});
#endif
}

template <int B = 1>
inline void transpose(F (&rows)[W]) {
  if constexpr (B < W) {
    constexpr auto lanes = std::make_integer_sequence<int, W>{};
#pragma GCC unroll 16
    for (int i = 0; i < W; ++i)
      if (!(i & B)) {
        const F a = rows[i], b = rows[i + B];
        rows[i] = swapped_blocks<B, false>(a, b, lanes);
        rows[i + B] = swapped_blocks<B, true>(a, b, lanes);
      }
    transpose<2 * B>(rows);
  }
}

}  // namespace dit::DIT_ISA
