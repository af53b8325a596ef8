// SPDX-License-Identifier: Apache-2.0
// Where the p x p patches of an image (N, C, h*p, w*p) lie in memory. Tokens are patches, numbered in row-major order
// sample after sample; a patch's pixels are reached from its corner by one table of offsets, the same for all patches.
#pragma once
#include <cstdint>
#include <vector>

namespace dit {

struct PatchGrid {
  int64_t channels, height, width, patch;  // height and width in patches

  int64_t tokens() const { return height * width; }
  int64_t pixels() const { return channels * patch * patch; }

  int64_t corner(int64_t token) const {
    const int64_t n = token / tokens(), i = token % tokens() / width, j = token % width;
    return ((n * channels * height + i) * patch * width + j) * patch;
  }

  // Offsets of pixels (channel, row, column) from the corner: features in the order of a Conv2d weight (C, p, p), or
  // channel_last, (p, p, C), in that of a DiT's final Linear.
  std::vector<int64_t> offsets(bool channel_last) const {
    std::vector<int64_t> table(pixels());
    for (int64_t c = 0; c < channels; ++c)
      for (int64_t r = 0; r < patch; ++r)
        for (int64_t q = 0; q < patch; ++q)
          table[channel_last ? (r * patch + q) * channels + c : (c * patch + r) * patch + q] =
              (c * height * patch + r) * width * patch + q;
    return table;
  }
};

}  // namespace dit
