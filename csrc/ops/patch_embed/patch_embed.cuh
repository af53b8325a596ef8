// SPDX-License-Identifier: Apache-2.0
// CUDA kernels of patch_embed. x, dx (N, C, H, W); weight, dweight (D, K), K = C*p*p; bias, dbias (D,); pos, dpos
// (T, D); out, dout (N, T, D). "Tokens" are the N * T patches, fewer than 2^31.
//
//   out[n, t]    = weight patch(n, t) + bias + pos[t]
//   dweight      = sum_NT dout[n, t] patch(n, t)^T,   dbias = sum_NT dout[n, t],   dpos[t] = sum_N dout[n, t]
//   dpatch(n, t) = weight^T dout[n, t], written to where patch(n, t) lies in dx
//
// Products are tiles of tile_mma.cuh, 8 warps a block forward and 4 backward; operands pass through shared memory in
// their storage dtype and are 0 past the edges of the problem. Pixels come straight from the image, in the widest words
// that p allows. Any D and K work; where a row of D (or K) elements is a multiple of 16 bytes it moves in such vectors,
// else one by one. Sums are float32, results are rounded once. Saved for backward: x, weight.
//
// Each kernel's own comment says how its grid maps to tiles.
#pragma once
#include "common/cuda/launch.h"
#include "common/cuda/patches.cuh"
#include "common/cuda/tile_mma.cuh"
#include "common/cuda/vec.cuh"
#include "ops/patch_embed/patch_embed.h"

namespace dit {

constexpr int kForwardThreads = 256, kGradientThreads = 128;
constexpr int forward_blocks(int64_t element_bytes) { return element_bytes == 2 ? 3 : 2; }  // on a multiprocessor
constexpr int kPatchTokens = 64;    // of a tile
constexpr int kPatchColumns = 128;  // of D, of a tile

template <class T>
constexpr int kPatchDepth = 128 / int(sizeof(T));  // of K in the forward, of D for dx: what is staged at a time

// ---- Staging: from tensors to shared memory

// kRows x kWidth elements of a matrix (rows, width), from `row` and `column` on; zeros where it has none. kSpread: the
// tile's row n goes to row spread_column(n). Leaves copies by cp.async under way.
template <int kThreads, int kRows, int kWidth, int kPitch, bool kSpread = false, class T>
DIT_DEVICE void stage_matrix(const void* matrix, int64_t rows, int64_t width, int64_t row, int64_t column, T* to) {
  constexpr int kUnits = kWidth / kVec<T>;
  const T* from = static_cast<const T*>(matrix);
  const bool vectors = width % kVec<T> == 0;
  for (int i = int(threadIdx.x); i < kRows * kUnits; i += kThreads) {
    const int r = i / kUnits, c = i % kUnits * kVec<T>;
    T* place = to + (kSpread ? spread_column(r) : r) * kPitch + c;
    const int64_t left = row + r < rows ? width - column - c : 0;  // elements of this row
    const T* source = from + (row + r) * width + column + c;
    if (vectors) {
      cp_async16(place, left > 0 ? source : from, left > 0);
    } else {
#pragma unroll
      for (int e = 0; e < kVec<T>; ++e) place[e] = e < left ? source[e] : from_float<T>(0.f);
    }
  }
}

// Offsets of `count` pixels from k on, for all threads after a barrier.
DIT_DEVICE void stage_pixels(const PatchGrid& grid, int k, int count, int64_t* pixels) {
  for (int i = int(threadIdx.x); i < count; i += int(blockDim.x)) pixels[i] = patch_pixel(grid, k + i);
}

// Copies every `step`th word of a patch from `word` on, kLoads at a time.
template <class Word, int kLoads, class T>
DIT_DEVICE void gather_words(const T* corner, bool exists, const int64_t* pixels, int count, int word, int step,
                             T* to) {
  constexpr int kElements = sizeof(Word) / sizeof(T);
  for (; word * kElements < count; word += kLoads * step) {
    Word loaded[kLoads];
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const int k = (word + i * step) * kElements;
      loaded[i] = exists && k < count ? *reinterpret_cast<const Word*>(corner + pixels[k]) : Word{};
    }
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const int k = (word + i * step) * kElements;
      if (k < count) *reinterpret_cast<Word*>(to + k) = loaded[i];
    }
  }
}

// Patches of kTokens tokens, one row each; the thread's part of the row of token threadIdx.x % kTokens. `count` pixels
// and then `after` and zeros up to `width`.
template <int kThreads, int kTokens, int kPitch, class T>
DIT_DEVICE void stage_patches(const T* corner, bool exists, int patch, const int64_t* pixels, int count, int width,
                              float after, T* to) {
  constexpr int kStep = kThreads / kTokens, kLoads = 512 / kThreads;
  const int part = int(threadIdx.x) / kTokens;
  T* row = to + int(threadIdx.x) % kTokens * kPitch;
  const int bytes = (patch & -patch) * int(sizeof(T));  // of the widest word that p is a multiple of
  if (bytes % 16 == 0)
    gather_words<uint4, kLoads>(corner, exists, pixels, count, part, kStep, row);
  else if (bytes % 8 == 0)
    gather_words<uint2, kLoads>(corner, exists, pixels, count, part, kStep, row);
  else if (bytes % 4 == 0)
    gather_words<uint32_t, kLoads>(corner, exists, pixels, count, part, kStep, row);
  else if constexpr (is_half_type<T>)
    gather_words<uint16_t, kLoads>(corner, exists, pixels, count, part, kStep, row);
  for (int k = count + part; k < width; k += kStep) row[k] = from_float<T>(k == count ? after : 0.f);
}

// Two buffers: stage(i, buffer) fills one by cp.async and stores while compute(buffer) reads the other.
template <class Stage, class Compute>
DIT_DEVICE void double_buffered(int steps, Stage&& stage, Compute&& compute) {
  if (steps > 0) {
    stage(0, 0);
    cp_async_commit();
  }
  for (int i = 0; i < steps; ++i) {
    if (i + 1 < steps) {
      stage(i + 1, (i + 1) % 2);
      cp_async_commit();
      cp_async_wait<1>();
    } else {
      cp_async_wait<0>();
    }
    __syncthreads();
    compute(i % 2);
    __syncthreads();
  }
}

// ---- Eight neighbouring columns of a row of D elements, those that exist

template <class T>
DIT_DEVICE void load_columns(const T* row, int column, int dim, float (&out)[8]) {
  if (dim % kVec<T> == 0) {
#pragma unroll
    for (int v = 0; v < 8; v += kVec<T>) {
      float part[kVec<T>];
      unpack(column + v < dim ? load_vec(row + column + v) : Vec<T>{}, part);
#pragma unroll
      for (int i = 0; i < kVec<T>; ++i) out[v + i] = part[i];
    }
  } else {
#pragma unroll
    for (int i = 0; i < 8; ++i) out[i] = column + i < dim ? to_float(row[column + i]) : 0.f;
  }
}

template <class T>
DIT_DEVICE void store_columns(T* row, int column, int dim, const float (&in)[8]) {
  if (dim % kVec<T> == 0) {
#pragma unroll
    for (int v = 0; v < 8; v += kVec<T>) {
      float part[kVec<T>];
#pragma unroll
      for (int i = 0; i < kVec<T>; ++i) part[i] = in[v + i];
      Vec<T> packed;
      pack(part, packed);
      if (column + v < dim) store_vec(row + column + v, packed);
    }
  } else {
#pragma unroll
    for (int i = 0; i < 8; ++i)
      if (column + i < dim) row[column + i] = from_float<T>(in[i]);
  }
}

// ---- Forward
//
// Tile i of the tokens is 64 i .. 64 i + 63. The positions of a tile return every `period` tiles, T / gcd(T, 64), so a
// block walks every period-th tile, `length` of them: pos stays in L1, the weight (while K is at most kPatchDepth) in
// shared memory, and the patches are a constant step apart.
//
//   grid: block ((group * period + phase) * column_tiles + c): 128 columns of D from 128 c on, the tiles
//         phase + period * (group * length + (0 .. length - 1)) that exist
//   warp w: tokens 32 (w / 4) .. of a tile, columns 32 (w % 4) ..
struct PatchWalk {
  int tiles, period, length, column_tiles;
};

template <class T>
struct PatchForwardRoom {
  static constexpr int kPitch = tile_pitch<T, kPatchDepth<T>>;
  alignas(16) T patches[2][kPatchTokens * kPitch];
  alignas(16) T weight[kPatchColumns * kPitch];  // rows spread
  int64_t pixels[kPatchDepth<T>];
};

// out = c + bias + pos for a warp's 32 tokens from `token` and 32 columns from `column` on; position[r] of row 8 r + g.
template <class T>
DIT_DEVICE void write_embedding(const PatchEmbedForward& a, const TileSums<32, 32>& c, int token, int column,
                                const int (&position)[4], int lane) {
  const T *bias = static_cast<const T*>(a.bias), *pos = static_cast<const T*>(a.pos);
  const int first = column + lane % 4 * 8, dim = int(a.dim);
  float base[8] = {};
  if (bias != nullptr) load_columns(bias, first, dim, base);
#pragma unroll
  for (int r = 0; r < 4; ++r) {
    const int mine = token + 8 * r + lane / 4;
    if (mine >= int(a.tokens)) continue;
    float sum[8], place[8];
    spread_sums(c, r / 2, r % 2, 0, sum);
    load_columns(pos + position[r] * a.dim, first, dim, place);
#pragma unroll
    for (int i = 0; i < 8; ++i) sum[i] += base[i] + place[i];
    store_columns(static_cast<T*>(a.out) + mine * a.dim, first, dim, sum);
  }
}

template <class T>
__global__ void __launch_bounds__(kForwardThreads, forward_blocks(sizeof(T)))
    patch_embed_forward_kernel(PatchEmbedForward a, PatchWalk walk) {
  constexpr int kDepth = kPatchDepth<T>, kPitch = PatchForwardRoom<T>::kPitch;
  __shared__ PatchForwardRoom<T> room;
  const int thread = int(threadIdx.x), lane = thread % 32;
  const int warp_row = thread / 128 * 32, warp_column = thread / 32 % 4 * 32;
  const int column = int(blockIdx.x) % walk.column_tiles * kPatchColumns, start = int(blockIdx.x) / walk.column_tiles;
  int tile = start % walk.period + start / walk.period * walk.period * walk.length;
  const int last = min(walk.tiles, tile + walk.period * walk.length);
  const int pixels = patch_pixels(a.grid), patch = int(a.grid.patch);

  const T* corner = static_cast<const T*>(a.x) + patch_corner(a.grid, tile * kPatchTokens + thread % kPatchTokens);
  const int64_t corner_step = int64_t(walk.period) * kPatchTokens * pixels;
  int position[4];  // of the thread's rows
#pragma unroll
  for (int r = 0; r < 4; ++r)
    position[r] = (tile * kPatchTokens + warp_row + 8 * r + lane / 4) % patch_tokens(a.grid);

  int buffer = 0;
  for (bool fresh = true; tile < last; tile += walk.period, corner += corner_step, fresh = false) {
    TileSums<32, 32> c = {};
    const bool exists = tile * kPatchTokens + thread % kPatchTokens < a.tokens;
    for (int k = 0; k < pixels; k += kDepth, buffer ^= 1) {
      const int count = pixels - k < kDepth ? pixels - k : kDepth, depth = (count + 15) / 16 * 16;
      if (fresh || pixels > kDepth) {
        __syncthreads();  // nobody reads the weight any more
        stage_pixels(a.grid, k, count, room.pixels);
        stage_matrix<kForwardThreads, kPatchColumns, kDepth, kPitch, true>(a.weight, a.dim, pixels, column, k,
                                                                           room.weight);
        cp_async_commit();
        cp_async_wait<0>();
        __syncthreads();
      }
      stage_patches<kForwardThreads, kPatchTokens, kPitch>(corner, exists, patch, room.pixels, count, depth, 0.f,
                                                           room.patches[buffer]);
      __syncthreads();  // the one barrier of a tile: what is written next is the other buffer
      tile_mma<Major::k, Major::k>(c, room.patches[buffer] + warp_row * kPitch, kPitch,
                                   room.weight + warp_column * kPitch, kPitch, depth, lane);
    }
    write_embedding<T>(a, c, tile * kPatchTokens + warp_row, column + warp_column, position, lane);
  }
}

// ---- dweight, dbias
//
// The product dout^T (D, tokens) times features (tokens, K + 1): the K pixels of a patch and a last feature that is 1,
// whose sums are dbias.
//
//   grid: block ((chunk * feature_tiles + f) * column_tiles + c): tokens chunk * a.chunk .. , kFeatures features from
//         kFeatures * f on, 128 columns of D from 128 c on
//   warp w: columns 32 w .. , all features of the tile
//
// Writes float32 sums over its tokens, which token_sums.cu adds in order. dout passes through two buffers.
template <class T, int kFeatures>
struct PatchWeightRoom {
  static constexpr int kTokens = 128 / int(sizeof(T));  // staged at a time
  static constexpr int kDoutPitch = tile_pitch<T, kPatchColumns>, kPitch = tile_pitch<T, kFeatures>;
  alignas(16) T dout[2][kTokens * kDoutPitch];
  alignas(16) T features[2][kTokens * kPitch];
  int64_t pixels[kFeatures];
};

template <class T, int kFeatures>
__global__ void __launch_bounds__(kGradientThreads, is_half_type<T> ? 4 : 3)
    patch_embed_weight_grad_kernel(PatchEmbedWeightGrad a, int feature_tiles, int column_tiles) {
  using Room = PatchWeightRoom<T, kFeatures>;
  constexpr int kTokens = Room::kTokens;
  Room& room = *dynamic_smem<Room>();
  const int thread = int(threadIdx.x), lane = thread % 32, warp_column = thread / 32 * 32;
  const int64_t column = int64_t(blockIdx.x) % column_tiles * kPatchColumns;
  const int feature = int(blockIdx.x) / column_tiles % feature_tiles * kFeatures;
  const int64_t chunk = int(blockIdx.x) / column_tiles / feature_tiles;
  const int64_t first = chunk * a.chunk, last = first + a.chunk < a.tokens ? first + a.chunk : a.tokens;
  const int pixels = patch_pixels(a.grid), patch = int(a.grid.patch);
  const int count = pixels - feature < kFeatures ? pixels - feature : kFeatures;

  stage_pixels(a.grid, feature, count, room.pixels);
  __syncthreads();
  TileSums<32, kFeatures> c = {};
  double_buffered(
      int((last - first + kTokens - 1) / kTokens),
      [&](int i, int buffer) {
        const int64_t token = first + int64_t(i) * kTokens, mine = token + thread % kTokens;
        stage_matrix<kGradientThreads, kTokens, kPatchColumns, Room::kDoutPitch>(a.dout, last, a.dim, token, column,
                                                                                 room.dout[buffer]);
        const T* corner = static_cast<const T*>(a.x) + patch_corner(a.grid, uint32_t(mine));
        stage_patches<kGradientThreads, kTokens, Room::kPitch>(corner, mine < last, patch, room.pixels, count,
                                                               kFeatures, 1.f, room.features[buffer]);
      },
      [&](int buffer) {
        const T *dout = room.dout[buffer] + warp_column, *features = room.features[buffer];
        if constexpr (is_half_type<T>) {
          tile_mma<Major::mn, Major::mn>(c, dout, Room::kDoutPitch, features, Room::kPitch, kTokens, lane);
        } else {  // sums of sums: one over all tokens would be less exact than a vendor library's
#pragma unroll 1
          for (int t = 0; t < kTokens; t += 16) {
            TileSums<32, kFeatures> part = {};
            tile_mma<Major::mn, Major::mn>(part, dout + t * Room::kDoutPitch, Room::kDoutPitch,
                                           features + t * Room::kPitch, Room::kPitch, 16, lane);
            add_sums(part, c);
          }
        }
      });

#pragma unroll
  for (int i = 0; i < 2; ++i)
#pragma unroll
    for (int j = 0; j < kFeatures / 8; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int64_t row = column + warp_column + tile_row(i, e, lane);
        const int k = feature + tile_column(j, e, lane);
        if (row >= a.dim) continue;
        if (k < pixels) a.partial[(chunk * a.dim + row) * pixels + k] = c[i][j][e];
        if (k == pixels) a.bias_partial[chunk * a.dim + row] = c[i][j][e];
      }
}

// ---- dpos: dout as N rows of T * D elements, summed over N
//
//   grid (ceil(T * D / (32 * kWidth))), block (32, 8): a thread adds kWidth columns of every 8th sample; their sums are
//   added in order. kWidth is a vector, or 1 where rows of T * D elements do not start at 16-byte addresses.
constexpr int kPosGroups = 8;

template <class T, int kWidth>
__global__ void __launch_bounds__(32 * kPosGroups) patch_embed_pos_grad_kernel(PatchEmbedPosGrad a) {
  __shared__ float sums[kPosGroups][kWidth][32];
  const int64_t size = a.tokens * a.dim, element = (int64_t(blockIdx.x) * 32 + threadIdx.x) * kWidth;
  const T* from = static_cast<const T*>(a.dout) + element;
  float total[kWidth] = {};
  if (element < size) {
#pragma unroll 4
    for (int64_t n = threadIdx.y; n < a.batch; n += kPosGroups) {
      float value[kWidth];
      if constexpr (kWidth == 1)
        value[0] = to_float(from[n * size]);
      else
        unpack(load_vec(from + n * size), value);
#pragma unroll
      for (int i = 0; i < kWidth; ++i) total[i] += value[i];
    }
  }
#pragma unroll
  for (int i = 0; i < kWidth; ++i) sums[threadIdx.y][i][threadIdx.x] = total[i];
  __syncthreads();
  if (threadIdx.y != 0 || element >= size) return;
#pragma unroll
  for (int i = 0; i < kWidth; ++i)
    for (int g = 1; g < kPosGroups; ++g) total[i] += sums[g][i][threadIdx.x];
  T* to = static_cast<T*>(a.dpos) + element;
  if constexpr (kWidth == 1) {
    *to = from_float<T>(total[0]);
  } else {
    Vec<T> packed;
    pack(total, packed);
    store_vec(to, packed);
  }
}

// ---- dx
//
//   grid: block (tile * pixel_tiles + f): 64 tokens from 64 tile on, kPixels pixels of their patches from kPixels f on
//   warp w: tokens 16 w .. of the tile, all its pixels
//
// D passes in steps of kPatchDepth through two buffers.
template <class T, int kPixels>
struct PatchImageRoom {
  static constexpr int kDoutPitch = tile_pitch<T, kPatchDepth<T>>, kPitch = tile_pitch<T, kPixels>;
  alignas(16) T dout[2][kPatchTokens * kDoutPitch];
  alignas(16) T weight[2][kPatchDepth<T> * kPitch];
  int64_t pixels[kPixels];
};

// Two neighbours, the first at a multiple of their size.
template <class T>
DIT_DEVICE void store_pair(T* to, float low, float high) {
  if constexpr (is_half_type<T>)
    *reinterpret_cast<uint32_t*>(to) = pack<T>(low, high);
  else
    *reinterpret_cast<float2*>(to) = make_float2(low, high);
}

template <class T, int kPixels>
__global__ void __launch_bounds__(kGradientThreads)
    patch_embed_image_grad_kernel(PatchEmbedImageGrad a, int pixel_tiles) {
  using Room = PatchImageRoom<T, kPixels>;
  constexpr int kDepth = kPatchDepth<T>;
  __shared__ Room room;
  const int lane = int(threadIdx.x) % 32, warp_row = int(threadIdx.x) / 32 * 16;
  const int64_t token = int64_t(blockIdx.x) / pixel_tiles * kPatchTokens;
  const int pixel = int(blockIdx.x) % pixel_tiles * kPixels, pixels = patch_pixels(a.grid);
  const int count = pixels - pixel < kPixels ? pixels - pixel : kPixels;

  stage_pixels(a.grid, pixel, count, room.pixels);
  __syncthreads();
  TileSums<16, kPixels> c = {};
  double_buffered(
      int((a.dim + kDepth - 1) / kDepth),
      [&](int i, int buffer) {
        const int64_t column = int64_t(i) * kDepth;
        stage_matrix<kGradientThreads, kPatchTokens, kDepth, Room::kDoutPitch>(a.dout, a.tokens, a.dim, token, column,
                                                                               room.dout[buffer]);
        stage_matrix<kGradientThreads, kDepth, kPixels, Room::kPitch>(a.weight, a.dim, pixels, column, pixel,
                                                                      room.weight[buffer]);
      },
      [&](int buffer) {
        tile_mma<Major::k, Major::mn>(c, room.dout[buffer] + warp_row * Room::kDoutPitch, Room::kDoutPitch,
                                      room.weight[buffer], Room::kPitch, kDepth, lane);
      });

  const bool pairs = a.grid.patch % 2 == 0;  // pixels 2t and 2t + 1 are neighbours
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int64_t mine = token + warp_row + tile_row(0, 2 * half, lane);
    if (mine >= a.tokens) continue;
    T* corner = static_cast<T*>(a.dx) + patch_corner(a.grid, uint32_t(mine));
#pragma unroll
    for (int j = 0; j < kPixels / 8; ++j) {
      const int k = tile_column(j, 0, lane);
      if (k >= count) continue;
      const float low = c[0][j][2 * half], high = c[0][j][2 * half + 1];
      if (pairs) {
        store_pair(corner + room.pixels[k], low, high);
      } else {
        corner[room.pixels[k]] = from_float<T>(low);
        if (k + 1 < count) corner[room.pixels[k + 1]] = from_float<T>(high);
      }
    }
  }
}

}  // namespace dit
