// SPDX-License-Identifier: Apache-2.0
// Arguments of adamw_ema's kernel: up to kTensors tensors a launch, their addresses among the arguments themselves, so
// that a launch needs no memory of its own and may be captured in a CUDA graph.
#pragma once
#include <cstdint>

#include "common/dtype.h"

namespace dit {

struct AdamwEma {
  static constexpr int kTensors = 56;

  struct One {
    void* param;
    const void* grad;
    float *exp_avg, *exp_avg_sq, *ema;  // ema, copy: null for none
    void* copy;
    const float* step;  // of this one, from 1
    int64_t numel;
  } tensors[kTensors];
  int32_t end_block[kTensors];  // the blocks of tensor i end before this one
  int32_t count;

  const float *lr_tensor, *clip;  // null for lr and 1
  float lr, log_beta1, log_beta2, rest1, beta2, rest2, eps, weight_decay, rest_ema;  // rest: 1 - beta, 1 - decay
  // Parameters are float32 or as their copies, gradients too; copy_dtype is param_dtype where there are no copies.
  Dtype param_dtype, grad_dtype, copy_dtype;
};
static_assert(sizeof(AdamwEma) <= 4096, "a kernel's arguments fit in 4 KB on every GPU and driver");

constexpr int64_t kAdamwEmaChunk = 8192;  // elements a block

int adamw_ema_cuda(const AdamwEma& a, void* stream);

}  // namespace dit
