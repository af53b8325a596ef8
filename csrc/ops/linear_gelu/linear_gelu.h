// SPDX-License-Identifier: Apache-2.0
// Arguments of the CPU kernels of linear and linear_gelu. x (M, K); weight (F, K); bias (F,); y, u, dy, du (M, F).
#pragma once
#include "common/cpu/isa.h"
#include "common/dtype.h"

namespace dit {

constexpr int64_t kLinearChunk = 192;    // rows of x that share one pass over the weight
constexpr int64_t kLinearFewRows = 32;   // so few rows read the weight as it lies, once: packing it would cost more

struct Linear {
  const void *x, *weight, *bias;  // bias may be null
  const float* panels;            // the weight as panels of (K, F), see panels.h; null for linear_few_rows
  void *y, *u;                    // u, the values before the GELU, may be null
  int64_t rows, inputs, outputs;
  bool gelu;
  Dtype dtype;

  int64_t chunks() const { return (rows + kLinearChunk - 1) / kLinearChunk; }
};

struct GeluBackward {
  const void *dy, *u;
  void* du;
  float* partial;  // (1, chunks, 1, F): sums of dbias over kCpuChunk rows each; see token_sums.h
  int64_t rows, outputs;
  Dtype dtype;
};

DIT_CPU_KERNEL(linear, Linear)               // items: chunks() times the 32-column blocks of F
DIT_CPU_KERNEL(linear_few_rows, Linear)      // items: the pairs of outputs
DIT_CPU_KERNEL(gelu_backward, GeluBackward)  // items: the chunks of kCpuChunk rows

}  // namespace dit
