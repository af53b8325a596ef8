// SPDX-License-Identifier: Apache-2.0
// What the AdaLN family chooses per architecture, offline (benchmarks/tune.py): nothing is tuned at a user's first call.
#pragma once

namespace dit {

struct Tuning {
  int blocks;         // that fill the GPU
  int norm_forward;   // tokens a thread holds at once: forward of adaln and gated_residual_adaln
  int norm_backward;  // and their backward
  int gate;           // gated_residual, both ways
};

// `blocks` is two on each multiprocessor of A100, H100/H200 and B200; the tokens are the most that leave registers for
// two blocks without a spill. On an H200 fewer tokens, with more blocks or without, and more with spills were slower;
// of other GPUs nothing has been measured.
constexpr Tuning tuning([[maybe_unused]] int compute_capability) {
#if defined(DIT_TUNE_BLOCKS)
  return {DIT_TUNE_BLOCKS, DIT_TUNE_NORM_FORWARD, DIT_TUNE_NORM_BACKWARD, DIT_TUNE_GATE};
#else
  if (compute_capability >= 100) return {2 * 148, 4, 2, 4};
  if (compute_capability >= 90) return {2 * 132, 4, 2, 4};
  return {2 * 108, 4, 2, 4};
#endif
}

// Of the architecture that a kernel is being compiled for.
#if defined(__CUDA_ARCH__)
constexpr Tuning kTuning = tuning(__CUDA_ARCH__ / 10);
#else
constexpr Tuning kTuning = tuning(80);
#endif

}  // namespace dit
