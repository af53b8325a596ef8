// SPDX-License-Identifier: Apache-2.0
// What is chosen per architecture, offline: nothing is tuned at a user's first call.
#pragma once

namespace dit {

struct Tuning {
  int blocks;  // blocks of the AdaLN family that fill the GPU: two on each multiprocessor
};

// No GPU has been at hand to measure these: they are the multiprocessors of A100, H100/H200 and B200.
constexpr Tuning tuning(int compute_capability) {
  if (compute_capability >= 100) return {2 * 148};
  if (compute_capability >= 90) return {2 * 132};
  return {2 * 108};
}

}  // namespace dit
