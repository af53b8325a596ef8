// SPDX-License-Identifier: Apache-2.0
// Arguments of the CPU kernels of linear and linear_gelu. x (M, K); weight (F, K); bias (F,); y, u, dy, du (M, F).
// dx = dy weight is a linear layer, too, from F to K, with the weight's steps exchanged; so is the gradient of the
// values before a GELU, from those of the linear layer behind it.
#pragma once
#include <algorithm>

#include "common/cpu/isa.h"
#include "common/dtype.h"

namespace dit {

constexpr int64_t kLinearBlock = 32;    // columns of a work item
constexpr int64_t kLinearRun = 4;       // items of which a thread packs the columns at a time
constexpr int64_t kLinearSpan = 1024;   // about the rows of a work item: so many pay for packing its columns
constexpr int64_t kLinearFewRows = 32;  // so few do not, and read the weight as it lies

// What becomes of a sum of products and its bias, if there is one.
enum class Epilogue {
  none,           // y = sum
  gelu,           // y = gelu(sum)
  gelu_kept,      // u = sum, y = gelu(sum)
  gelu_gradient,  // sum is dy of a GELU of u, which was kept: y = du, activated = gelu(u), partial the sums of dbias
};

struct Linear {
  const void *x, *weight, *bias;  // bias may be null
  void *y, *u;                    // u may be null where it is neither kept nor read
  int64_t rows, inputs, outputs;
  int64_t input_step, output_step;  // weight (k, f) at k * input_step + f * output_step; of few rows the first is 1
  Epilogue epilogue;
  Dtype dtype;
  void* activated = nullptr;  // (M, F)
  float* partial = nullptr;   // (1, spans(), 1, F): sums of dbias over the rows of a span; see token_sums.h

  // Spans are of equal length, or threads that share them would not get equal work.
  int64_t spans() const { return std::max<int64_t>(1, (rows + kLinearSpan / 2) / kLinearSpan); }
  int64_t span_begin(int64_t span) const { return span * rows / spans(); }
  int64_t blocks() const { return (outputs + kLinearBlock - 1) / kLinearBlock; }
};

struct GeluBackward {
  const void *dy, *u;
  void* du;
  float* partial;  // (1, chunks, 1, F): sums of dbias over kCpuChunk rows each; see token_sums.h
  int64_t rows, outputs;
  Dtype dtype;
};

DIT_CPU_KERNEL(linear, Linear)               // items: spans() * blocks(), spans of rows outside
DIT_CPU_KERNEL(linear_few_rows, Linear)      // items: blocks(); at most kLinearFewRows rows; no gelu_gradient
DIT_CPU_KERNEL(gelu_backward, GeluBackward)  // items: the chunks of kCpuChunk rows

}  // namespace dit
