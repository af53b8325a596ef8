// SPDX-License-Identifier: Apache-2.0
// A weight as float32 panels, the form in which tile.h reads it: the (rows, cols) matrix is cut into panels of
// kTileCols columns, each stored as rows of kTileCols floats side by side, the last panel padded with zeros.
#pragma once
#include <cstdint>

#include "common/cpu/isa.h"
#include "common/dtype.h"

namespace dit {

constexpr int64_t kTileRows = 6;
constexpr int64_t kPanelPadding = 32;  // a multiple of every instruction set's kTileCols

inline int64_t tile_count(int64_t rows) { return (rows + kTileRows - 1) / kTileRows; }
inline int64_t panels_size(int64_t rows, int64_t cols) {
  return rows * ((cols + kPanelPadding - 1) / kPanelPadding * kPanelPadding);
}

// Tiles of rows that share one sweep over the panels: 1 where the panels stay in a core's cache anyway.
inline int64_t tiles_per_sweep(int64_t rows, int64_t cols) { return rows * cols * 4 <= (256 << 10) ? 1 : 4; }

struct Panels {
  const void* matrix;  // element (row, col) at matrix[row * row_step + col * col_step]; one step is 1
  float* out;          // panels_size(rows, cols) floats
  int64_t rows, cols, row_step, col_step;
  Dtype dtype;
};

// Items: blocks of kPanelPadding columns.
DIT_CPU_KERNEL(pack_panels, Panels)

}  // namespace dit
