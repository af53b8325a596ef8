// SPDX-License-Identifier: Apache-2.0
// Arguments of the CPU kernels of linear and linear_gelu. x (M, K); weight (F, K); bias (F,); y, u, dy, du (M, F).
#pragma once
#include "common/cpu/isa.h"
#include "common/dtype.h"

namespace dit {

constexpr int64_t kLinearBlock = 32;    // columns of a work item
constexpr int64_t kLinearSpan = 1008;   // rows of a work item: so many pay for packing its columns of the weight
constexpr int64_t kLinearFewRows = 32;  // so few do not, and read the weight as it lies

struct Linear {
  const void *x, *weight, *bias;  // bias may be null
  void *y, *u;                    // u, the values before the GELU, may be null
  int64_t rows, inputs, outputs;
  bool gelu;
  Dtype dtype;

  int64_t spans() const { return (rows + kLinearSpan - 1) / kLinearSpan; }
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
DIT_CPU_KERNEL(linear_few_rows, Linear)      // items: blocks(); at most kLinearFewRows rows
DIT_CPU_KERNEL(gelu_backward, GeluBackward)  // items: the chunks of kCpuChunk rows

}  // namespace dit
