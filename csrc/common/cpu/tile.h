// SPDX-License-Identifier: Apache-2.0
// A tile of a matrix product held in registers, and the panels that feed it: what ops with a thin Linear are built on.
//
//   c[r][j] += sum_k a[k][r] * b[k][j]       r < kTileRows, j < kTileCols, all float32
//
// 6 rows of 2 vectors are 12 sums, enough to hide the latency of a fused multiply-add, and leave room for the
// operands in 16 registers. Every element of a product is summed in the same order wherever its tile lies.
// Include only in *_cpu.cpp files.
#pragma once
#include "common/cpu/panels.h"
#include "common/cpu/vec.h"

namespace dit::DIT_ISA {

constexpr int64_t kTileCols = 2 * W;
constexpr int64_t kTileDepth = 64;
static_assert(kPanelPadding % kTileCols == 0, "a panel must fit the padding of any instruction set");

struct Tile {
  F v[kTileRows][2];
};

// a(r, k) lies at a[r * row + k * step]; b(k, :) are kTileCols floats at b + k * b_step. A long sum is made of sums of
// kTileDepth terms, which keeps its rounding error that of a short one.
// Not inlined: in the middle of a larger function GCC spills the sums.
__attribute__((noinline)) inline void multiply(Tile& c, const float* a, int64_t row, int64_t step, const float* b,
                                               int64_t b_step, int64_t k) {
  for (; k > 0; k -= kTileDepth) {
    Tile t = {};
    for (int64_t left = k < kTileDepth ? k : kTileDepth; left > 0; --left, a += step, b += b_step) {
      const F b0 = load(b), b1 = load(b + W);
#pragma GCC unroll 6
      for (int64_t r = 0; r < kTileRows; ++r) {
        const F ar = splat(a[r * row]);
        t.v[r][0] += ar * b0;
        t.v[r][1] += ar * b1;
      }
    }
#pragma GCC unroll 6
    for (int64_t r = 0; r < kTileRows; ++r)
      for (int64_t v = 0; v < 2; ++v) c.v[r][v] += t.v[r][v];
  }
}

// Visits the vectors of columns first..first + kTileCols that lie before `end`: body(v, column, lanes).
template <class Body>
inline void tile_columns(int64_t first, int64_t end, Body&& body) {
  if (first + kTileCols <= end) {
    body(0, first, Full{});
    body(1, first + W, Full{});
    return;
  }
  for (int64_t v = 0; v < 2; ++v) {
    const int64_t column = first + v * W, left = end - column;
    if (left >= W) body(v, column, Full{});
    else if (left > 0) body(v, column, left);
  }
}

inline int64_t panel_count(int64_t cols) { return (cols + kTileCols - 1) / kTileCols; }

}  // namespace dit::DIT_ISA
