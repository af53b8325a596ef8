// SPDX-License-Identifier: Apache-2.0
// PatchGrid's places in an image, for kernels. Tokens are numbered in 32 bits, elements in 64.
#pragma once
#include "common/cpu/patches.h"
#include "common/cuda/platform.h"

namespace dit {

DIT_DEVICE int patch_pixels(const PatchGrid& grid) { return int(grid.channels * grid.patch * grid.patch); }
DIT_DEVICE int patch_tokens(const PatchGrid& grid) { return int(grid.height * grid.width); }  // of one sample

// The first pixel of a token's patch.
DIT_DEVICE int64_t patch_corner(const PatchGrid& grid, uint32_t token) {
  const uint32_t width = uint32_t(grid.width), tokens = uint32_t(patch_tokens(grid));
  const uint32_t n = token / tokens, t = token % tokens, i = t / width, j = t % width;
  return ((n * grid.channels * grid.height + i) * grid.patch * width + j) * grid.patch;
}

// From there to pixel k in the order of a Conv2d weight, (C, p, p).
DIT_DEVICE int64_t patch_pixel(const PatchGrid& grid, uint32_t k) {
  const uint32_t p = uint32_t(grid.patch), c = k / (p * p), r = k / p % p, q = k % p;
  return (c * grid.height * p + r) * grid.width * p + q;
}

}  // namespace dit
