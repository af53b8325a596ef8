// SPDX-License-Identifier: Apache-2.0
// Forward kernel of final_layer. x (N, T, D); shift, scale (N, D) with row strides, or null: then h = x; weight (O, D),
// O = p*p*C; bias (O,); out (N, C, h*p, w*p); mean, rstd (N, T) float32.
//
//   h = round(xhat * (1 + scale) + shift),   xhat = (x - mean) * rstd,   y = h weight^T + bias,   y placed in the image
//
// Grid (N * chunks): a block takes one chunk of a sample's tokens, 16 * kTiles at most.
// 1. Threads as in rows.cuh: x goes from memory to registers, once; statistics; h to shared memory, rounded to the
//    storage dtype, as eager PyTorch rounds the operand of its product.
// 2. For every 32 features the warps share out K = D; each multiplies all tokens of the block by its part of K
//    (weight_product.cuh).
// 3. Their sums meet in shared memory, are added in order of warps, and y goes to its place in the image. Up to 32
//    features they take h's place, which is used up by then.
// Arithmetic is float32 but for the products of 16-bit types, whose sums are float32.
//
// Why h waits in shared memory: at D = 1152 a block's 32 tokens of 16 bits take 76 KB, so that two blocks share a
// multiprocessor (164 KB on an A100, 228 KB on an H100), and one loads while the other multiplies. 64 tokens would
// leave one block alone; a second walk over x instead would double the traffic to L2, which each block's reading of
// the weight (74 KB for 32 features, as much as its x) already doubles. float32 takes 16 tokens, for the same bytes.
#pragma once
#include "common/cuda/layernorm.cuh"
#include "ops/final_layer/final_layer.h"
#include "ops/final_layer/weight_product.cuh"

namespace dit {

constexpr int kFinalFeatures = 32;   // features a block multiplies at a time
constexpr int kFinalMaxShares = 12;  // warps that share out K: bounds the room of their sums

// Tiles of 16 tokens that a block holds. Any width: one, for the largest rows.
template <class R>
constexpr int kFinalTiles = R::kDim != 0 && sizeof(typename R::T) == 2 ? 2 : 1;

// A block's threads: fewer than rows.cuh allows, since rows have at most 8 KiB here (final_layer.cu).
template <class R>
constexpr int kFinalThreads = R::kDim != 0 ? R::kMaxThreads : 512;

// Offset of the first pixel of token t's patch in the image.
DIT_DEVICE int64_t patch_corner(const PatchGrid& grid, int64_t sample, int token) {
  const int width = int(grid.width), i = token / width, j = token % width;
  return ((sample * grid.channels * grid.height + i) * grid.patch * width + j) * grid.patch;
}

// Offset from there of feature o in (row, column, channel) order, within one sample's image of less than 2^31 pixels.
DIT_DEVICE int patch_pixel(const PatchGrid& grid, int o) {
  const int channels = int(grid.channels), patch = int(grid.patch);
  const int c = o % channels, place = o / channels;
  return (c * int(grid.height) * patch + place / patch) * int(grid.width) * patch + place % patch;
}

DIT_DEVICE int thread_in_block() { return int(threadIdx.y * blockDim.x + threadIdx.x); }
DIT_DEVICE int threads_of_block() { return int(blockDim.x * blockDim.y); }

// The forward's shared memory: h, and the sums of the warps behind it or in its place.
template <class R>
struct FinalForwardRoom {
  static constexpr int kTokens = 16 * kFinalTiles<R>;
  static constexpr int kSumPitch = kTokens + 4;  // floats: a warp's sums go to 32 banks

  __host__ __device__ static constexpr int pitch(int dim) { return product_pitch<typename R::T>(dim); }
  __host__ __device__ static constexpr int shares(int threads) {
    return threads / 32 < kFinalMaxShares ? threads / 32 : kFinalMaxShares;
  }
  __host__ __device__ static constexpr int sums_at(int dim, int features) {
    return features > kFinalFeatures ? kTokens * pitch(dim) * int(sizeof(typename R::T)) : 0;
  }
  __host__ static constexpr int bytes(int dim, int features, int threads) {
    const int h = kTokens * pitch(dim) * int(sizeof(typename R::T));
    const int all = sums_at(dim, features) + shares(threads) * kFinalFeatures * kSumPitch * int(sizeof(float));
    return h > all ? h : all;
  }
};

// h of the block's tokens in shared memory, mean and rstd in memory. Rows of tokens that do not exist stay undefined.
template <class R>
DIT_DEVICE void modulated_tokens(const FinalLayerForward& a, const Chunk& mine, const Place<R>& at, typename R::T* h,
                                 int pitch) {
  using T = typename R::T;
  constexpr int kRows = R::kDim == 0 ? 1 : 4;
  __shared__ NormRoom<R, kRows> room;
  const Vec<T> shift = a.shift ? at.modulation(a.shift, mine.sample, a.shift_stride) : Vec<T>{};
  const Vec<T> scale = a.scale ? at.modulation(a.scale, mine.sample, a.scale_stride) : Vec<T>{};
  const int64_t first_row = mine.sample * a.grid.height * a.grid.width + mine.first;
  const int count = int(mine.last - mine.first);
  int turn = 0;
  for (int start = 0; start < count; start += kRows * at.groups) {
    Vec<T> x[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int t = start + r * at.groups + at.group;
      x[r] = at.load(a.x, first_row + t, t < count);
    }
    if (a.scale) {
      float mean[kRows], rstd[kRows];
      row_stats<R>(x, a.eps, at, room, turn, mean, rstd);
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const int t = start + r * at.groups + at.group;
        x[r] = modulate(x[r], mean[r], rstd[r], shift, scale);
        if (threadIdx.x == 0 && t < count) {
          a.mean[first_row + t] = mean[r];
          a.rstd[first_row + t] = rstd[r];
        }
      }
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int t = start + r * at.groups + at.group;
      if (t < count && at.active) store_vec(h + t * pitch + at.column, x[r]);
    }
  }
}

// y of features first .. first + 31 from the warps' sums, to the image.
template <class R>
DIT_DEVICE void write_image(const FinalLayerForward& a, const Chunk& mine, const float* sums, int shares, int first,
                            int features) {
  using T = typename R::T;
  using Room = FinalForwardRoom<R>;
  const int t = thread_in_block() % Room::kTokens, step = threads_of_block() / Room::kTokens;
  if (mine.first + t >= mine.last) return;
  T* to = static_cast<T*>(a.out) + patch_corner(a.grid, mine.sample, int(mine.first) + t);
  for (int o = thread_in_block() / Room::kTokens; o < kFinalFeatures && first + o < features; o += step) {
    float y = 0.f;
    for (int s = 0; s < shares; ++s) y += sums[(s * kFinalFeatures + o) * Room::kSumPitch + t];
    y += to_float(static_cast<const T*>(a.bias)[first + o]);
    to[patch_pixel(a.grid, first + o)] = from_float<T>(y);
  }
}

template <class R>
__global__ void __launch_bounds__(kFinalThreads<R>, R::kMinBlocks)
    final_layer_forward_kernel(FinalLayerForward a, int64_t chunk, int64_t chunks) {
  using T = typename R::T;
  using Room = FinalForwardRoom<R>;
  constexpr int kTiles = kFinalTiles<R>;
  const Place<R> at(a.dim);
  const Chunk mine(chunk, chunks, a.grid.height * a.grid.width);
  const int features = int(a.grid.channels * a.grid.patch * a.grid.patch), threads = threads_of_block();
  const int pitch = Room::pitch(at.dim);
  T* h = dynamic_smem<T>();
  float* sums = reinterpret_cast<float*>(dynamic_smem<unsigned char>() + Room::sums_at(at.dim, features));
  modulated_tokens<R>(a, mine, at, h, pitch);
  __syncthreads();

  const int warp = thread_in_block() / 32, lane = thread_in_block() % 32, shares = Room::shares(threads);
  for (int first = 0; first < features; first += kFinalFeatures) {
    TileSums<16 * kTiles, kFinalFeatures> y = {};
    if (warp < shares) {
      const WeightRows<T> weight{static_cast<const T*>(a.weight) + int64_t(first) * at.dim, at.dim, features - first};
      multiply_by_weight(y, h, pitch, weight, at.dim, warp, shares, lane);
    }
    __syncthreads();  // h is read; the sums of the features before are, too
    if (warp < shares) {
#pragma unroll
      for (int i = 0; i < kTiles; ++i)
#pragma unroll
        for (int j = 0; j < kFinalFeatures / 8; ++j)
#pragma unroll
          for (int e = 0; e < 4; ++e)
            sums[(warp * kFinalFeatures + tile_column(j, e, lane)) * Room::kSumPitch + tile_row(i, e, lane)] =
                y[i][j][e];
    }
    __syncthreads();
    write_image<R>(a, mine, sums, shares, first, features);
  }
}

}  // namespace dit
