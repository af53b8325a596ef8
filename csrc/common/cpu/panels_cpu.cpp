// SPDX-License-Identifier: Apache-2.0
#include "common/cpu/panels.h"

#include <algorithm>

#include "common/cpu/tile.h"

namespace dit::DIT_ISA {

void pack_panels(const Panels& a, int64_t begin, int64_t end) {
  dispatch(a.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const T* matrix = static_cast<const T*>(a.matrix);
    const int64_t last = std::min(end * kPanelPadding, panel_count(a.cols) * kTileCols);
    for (int64_t first = begin * kPanelPadding; first < last; first += kTileCols) {
      float* out = a.out + first * a.rows;
      if (a.col_step == 1) {
        for (int64_t r = 0; r < a.rows; ++r, out += kTileCols) {
          store(out, F{});
          store(out + W, F{});
          tile_columns(first, a.cols, [&](int64_t v, int64_t column, auto lanes) {
            store(out + v * W, load(matrix + r * a.row_step + column, lanes));
          });
        }
        continue;
      }
      for (int64_t j = 0; j < kTileCols; ++j) {
        const bool inside = first + j < a.cols;
        const T* from = matrix + (first + j) * a.col_step;
        for (int64_t r = 0; r < a.rows; ++r) out[r * kTileCols + j] = inside ? to_f32(from[r * a.row_step]) : 0.f;
      }
    }
  });
}

}  // namespace dit::DIT_ISA
