// SPDX-License-Identifier: Apache-2.0
// Heads in memory: rows of Dh elements side by side, (sample, token, head) any distance apart. A packed qkv
// (N, T, 3, H, Dh) is three of them.
#pragma once
#include <cstdint>

namespace dit {

struct HeadStrides {
  int64_t sample, token, head;  // in elements
};
struct Heads {
  const void* data;
  HeadStrides stride;
};
struct MutableHeads {
  void* data;
  HeadStrides stride;
};

}  // namespace dit
