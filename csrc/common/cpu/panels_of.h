// SPDX-License-Identifier: Apache-2.0
// A weight's panels as a tensor, for the registering files. It must outlive the kernel that reads it.
#pragma once
#include "common/cpu/panels.h"
#include "common/stable.h"

namespace dit {

// The (rows, cols) matrix at matrix[row * row_step + col * col_step]; one step is 1.
inline Tensor panels_of(const Tensor& matrix, int64_t rows, int64_t cols, int64_t row_step, int64_t col_step,
                        Dtype dtype) {
  Tensor out = empty_f32(matrix, {panels_size(rows, cols)});
  const Panels args{matrix.const_data_ptr(), out.mutable_data_ptr<float>(), rows, cols, row_step, col_step, dtype};
  parallel((cols + kPanelPadding - 1) / kPanelPadding, 4, args, pack_panels);
  return out;
}

}  // namespace dit
