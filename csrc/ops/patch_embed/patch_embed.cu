// SPDX-License-Identifier: Apache-2.0
// Launches patch_embed's CUDA kernels.
#include "ops/patch_embed/patch_embed.cuh"

#include <numeric>

#include "common/cuda/dispatch.h"
#include "common/cuda/launch.h"
#include "common/cuda/tuning.h"

namespace dit {
namespace {

// Tiles of the weight gradient: most latents have 16 pixels a patch, more are taken 72 at a time with the last feature.
constexpr int kFewFeatures = 24, kManyFeatures = 72;
constexpr int kFewPixels = 16, kManyPixels = 64;  // of dx
constexpr int64_t kMaxChunks = 64;                // bounds the partial sums of dweight to 64 times its size

int64_t tiles_of(int64_t size, int64_t tile) { return (size + tile - 1) / tile; }

int64_t feature_tiles(int64_t pixels) {
  return tiles_of(pixels + 1, pixels < kFewFeatures ? kFewFeatures : kManyFeatures);
}

// Kernels number tokens, columns and blocks in 32 bits, up to the end of the last tile.
bool fits(int64_t tokens, int64_t dim, int64_t blocks) {
  return tokens <= INT32_MAX - kPatchTokens && dim <= INT32_MAX - kPatchColumns && blocks <= INT32_MAX;
}

// One wave: as many blocks as the GPU holds at a time, each with as many tiles as that takes.
PatchWalk forward_walk(const PatchEmbedForward& a) {
  const int64_t tiles = tiles_of(a.tokens, kPatchTokens), column_tiles = tiles_of(a.dim, kPatchColumns);
  const int64_t period = std::min(tiles, a.grid.tokens() / std::gcd<int64_t>(a.grid.tokens(), kPatchTokens));
  const int64_t multiprocessors = tuning(compute_capability()).blocks / 2;
  const int64_t blocks = multiprocessors * forward_blocks(size_of(a.dtype));
  const int64_t length = std::min(tiles_of(tiles * column_tiles, blocks), tiles_of(tiles, period));
  return {int(tiles), int(period), int(length), int(column_tiles)};
}

}  // namespace

int patch_embed_forward_cuda(const PatchEmbedForward& a, void* stream) {
  if (a.tokens * a.dim == 0) return cudaSuccess;
  const int64_t column_tiles = tiles_of(a.dim, kPatchColumns);
  if (!fits(a.tokens, a.dim, tiles_of(a.tokens, kPatchTokens) * column_tiles)) return cudaErrorInvalidValue;
  const PatchWalk walk = forward_walk(a);
  const int64_t groups = tiles_of(tiles_of(walk.tiles, walk.period), walk.length);
  return dispatch_cuda(a.dtype, [&](auto* element) {
    using T = std::remove_pointer_t<decltype(element)>;
    return launch(patch_embed_forward_kernel<T>, dim3(unsigned(groups * walk.period * column_tiles)),
                  dim3(kForwardThreads), 0, static_cast<cudaStream_t>(stream), a, walk);
  });
}

// A few blocks on every multiprocessor, and at least 128 tokens in a chunk.
int64_t patch_embed_chunk_tokens(int64_t tokens, int64_t dim, int64_t pixels) {
  const int64_t others = tiles_of(dim, kPatchColumns) * feature_tiles(pixels);
  const int64_t blocks = 2 * tuning(compute_capability()).blocks;
  const int64_t chunks = std::clamp<int64_t>(tiles_of(blocks, std::max<int64_t>(others, 1)), 1, kMaxChunks);
  return kPatchBlock * std::max<int64_t>(2, tiles_of(tiles_of(tokens, kPatchBlock), chunks));
}

int patch_embed_weight_grad_cuda(const PatchEmbedWeightGrad& a, void* stream) {
  if (a.tokens * a.dim == 0) return cudaSuccess;
  const int64_t features = feature_tiles(a.grid.pixels()), columns = tiles_of(a.dim, kPatchColumns);
  const int64_t blocks = tiles_of(a.tokens, a.chunk) * features * columns;
  if (!fits(a.tokens, a.dim, blocks)) return cudaErrorInvalidValue;
  return dispatch_cuda(a.dtype, [&](auto* element) {
    using T = std::remove_pointer_t<decltype(element)>;
    const auto with = [&](auto* kernel, size_t room) {
      return launch(kernel, dim3(unsigned(blocks)), dim3(kGradientThreads), room, static_cast<cudaStream_t>(stream), a,
                    int(features), int(columns));
    };
    return a.grid.pixels() < kFewFeatures
               ? with(patch_embed_weight_grad_kernel<T, kFewFeatures>, sizeof(PatchWeightRoom<T, kFewFeatures>))
               : with(patch_embed_weight_grad_kernel<T, kManyFeatures>, sizeof(PatchWeightRoom<T, kManyFeatures>));
  });
}

int patch_embed_pos_grad_cuda(const PatchEmbedPosGrad& a, void* stream) {
  const int64_t size = a.tokens * a.dim;
  if (size == 0) return cudaSuccess;
  return dispatch_cuda(a.dtype, [&](auto* element) {
    using T = std::remove_pointer_t<decltype(element)>;
    const int width = size % kVec<T> == 0 ? kVec<T> : 1;
    const dim3 grid(unsigned(tiles_of(size, 32 * width))), block(32, kPosGroups);
    return launch(width == 1 ? patch_embed_pos_grad_kernel<T, 1> : patch_embed_pos_grad_kernel<T, kVec<T>>, grid, block,
                  0, static_cast<cudaStream_t>(stream), a);
  });
}

int patch_embed_image_grad_cuda(const PatchEmbedImageGrad& a, void* stream) {
  const int64_t pixels = a.grid.pixels();
  if (a.tokens * pixels == 0) return cudaSuccess;
  const int64_t pixel_tiles = tiles_of(pixels, pixels <= kFewPixels ? kFewPixels : kManyPixels);
  const int64_t blocks = tiles_of(a.tokens, kPatchTokens) * pixel_tiles;
  if (!fits(a.tokens, a.dim, blocks)) return cudaErrorInvalidValue;
  return dispatch_cuda(a.dtype, [&](auto* element) {
    using T = std::remove_pointer_t<decltype(element)>;
    return launch(pixels <= kFewPixels ? patch_embed_image_grad_kernel<T, kFewPixels>
                                       : patch_embed_image_grad_kernel<T, kManyPixels>,
                  dim3(unsigned(blocks)), dim3(kGradientThreads), 0, static_cast<cudaStream_t>(stream), a,
                  int(pixel_tiles));
  });
}

}  // namespace dit
