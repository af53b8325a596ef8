// SPDX-License-Identifier: Apache-2.0
#include "common/cpu/panels.h"

#include <algorithm>

#include "common/cpu/tile.h"
#include "common/cpu/transpose.h"

namespace dit::DIT_ISA {
namespace {

// One panel of a matrix whose columns are dense: squares of W x W elements are turned.
template <class T>
void pack_columns(const Panels& a, int64_t first, float* out) {
  const T* matrix = static_cast<const T*>(a.matrix);
  for (int64_t v = 0; v < 2; ++v)
    for (int64_t r = 0; r < a.rows; r += W) {
      F square[W];
      const int64_t left = std::min(W, a.rows - r);
      for (int64_t j = 0; j < W; ++j) {
        const int64_t column = first + v * W + j;
        const T* from = matrix + column * a.col_step + r;
        square[j] = column >= a.cols ? F{} : left == W ? load(from) : load(from, left);
      }
      transpose(square);
      for (int64_t i = 0; i < left; ++i) store(out + (r + i) * kTileCols + v * W, square[i]);
    }
}

}  // namespace

void pack_panels(const Panels& a, int64_t begin, int64_t end) {
  dispatch(a.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const T* matrix = static_cast<const T*>(a.matrix);
    const int64_t last = std::min(end * kPanelPadding, panel_count(a.cols) * kTileCols);
    for (int64_t first = begin * kPanelPadding; first < last; first += kTileCols) {
      float* out = a.out + first * a.rows;
      if (a.row_step == 1) {
        pack_columns<T>(a, first, out);
      } else {
        for (int64_t r = 0; r < a.rows; ++r, out += kTileCols) {
          store(out, F{});
          store(out + W, F{});
          tile_columns(first, a.cols, [&](int64_t v, int64_t column, auto lanes) {
            store(out + v * W, load(matrix + r * a.row_step + column, lanes));
          });
        }
      }
    }
  });
}

}  // namespace dit::DIT_ISA
