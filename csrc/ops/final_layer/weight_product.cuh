// SPDX-License-Identifier: Apache-2.0
// A warp's product of rows in shared memory with a weight that stays in global memory, where L1 and L2 keep it:
//
//   c (M, N) += a (M, K) b (N, K)^T,   sums float32, owned as in tile_mma.cuh
//
// Both operands have K along their rows, and a product does not mind the order in which K is summed. So a lane loads
// its fragments as 16-byte vectors, one for each row: with g = lane / 4 and t = lane % 4, of every kProductStep
// elements lane (g, t) holds elements t * kVec .. of row g. Of those, two tensor core products take two each for
// k = 2t, 2t + 1 and 2t + 8, 2t + 9. No staging, no ldmatrix, and a row of b is read in whole sectors.
//
// float32 multiplies exactly on the plain cores: the lane loads rows g, g + 8 of a and rows 2t, 2t + 1 of b. The
// products of a step are summed before they are added to c, which keeps long sums as exact as a blocked product's.
#pragma once
#include "common/cuda/tile_mma.cuh"
#include "common/cuda/vec.cuh"

namespace dit {

template <class T>
constexpr int kProductStep = 4 * kVec<T>;  // elements of K a warp takes at a time

// Distance between rows of a in shared memory: 64 bytes past a multiple of 128, so that the two rows that eight lanes
// read lie in different banks. At least `width` elements, a multiple of 16 bytes.
template <class T>
__host__ __device__ constexpr int product_pitch(int width) {
  return ((width * int(sizeof(T)) + 63) / 128 * 128 + 64) / int(sizeof(T));
}

template <class T>
struct WeightRows {
  const T* rows;
  int64_t pitch;
  int count;  // rows past it count as zero
};

namespace weight_product {

// On the tensor cores.
template <class T, int kM16, int kN8>
DIT_DEVICE void mma_step(float (&c)[kM16][kN8][4], const T* a, int a_pitch, const WeightRows<T>& b, int depth, int k,
                         int lane) {
  const int g = lane / 4, column = k + lane % 4 * kVec<T>;
  const bool exists = column < depth;
  Vec<T> b_part[kN8];
#pragma unroll
  for (int j = 0; j < kN8; ++j)
    b_part[j] = exists && 8 * j + g < b.count ? load_vec(b.rows + (8 * j + g) * b.pitch + column) : Vec<T>{};
#pragma unroll
  for (int i = 0; i < kM16; ++i) {
    const T* row = a + (16 * i + g) * a_pitch + column;
    const Vec<T> top = exists ? load_vec(row) : Vec<T>{}, low = exists ? load_vec(row + 8 * a_pitch) : Vec<T>{};
#pragma unroll
    for (int half = 0; half < 4; half += 2) {
      const uint32_t a_part[4] = {top.words[half], low.words[half], top.words[half + 1], low.words[half + 1]};
#pragma unroll
      for (int j = 0; j < kN8; ++j) mma_m16n8k16<T>(c[i][j], a_part, b_part[j].words[half], b_part[j].words[half + 1]);
    }
  }
}

// Columns 8 j .. 8 j + 7 of c, on the plain cores.
template <int kM16, int kN8>
DIT_DEVICE void fma_step(float (&c)[kM16][kN8][4], int j, const float* a, int a_pitch, const WeightRows<float>& b,
                         int depth, int k, int lane) {
  const int row = tile_column(j, 0, lane);
  float part[kM16][4] = {};
#pragma unroll
  for (int kk = 0; kk < kProductStep<float>; kk += 4) {
    if (k + kk >= depth) break;
    float b_part[2][4];
#pragma unroll
    for (int e = 0; e < 2; ++e)
      unpack(row + e < b.count ? load_vec(b.rows + (row + e) * b.pitch + k + kk) : Vec<float>{}, b_part[e]);
#pragma unroll
    for (int i = 0; i < kM16; ++i)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float a_part[4];
        unpack(load_vec(a + tile_row(i, 2 * half, lane) * a_pitch + k + kk), a_part);
#pragma unroll
        for (int e = 0; e < 2; ++e)
#pragma unroll
          for (int v = 0; v < 4; ++v)
            part[i][2 * half + e] = fmaf(a_part[v], b_part[e][v], part[i][2 * half + e]);
      }
  }
#pragma unroll
  for (int i = 0; i < kM16; ++i)
#pragma unroll
    for (int e = 0; e < 4; ++e) c[i][j][e] += part[i][e];
}

}  // namespace weight_product

// Adds steps first, first + stride, ... of K = depth, a multiple of 8. All lanes of the warp must call it.
template <class T, int kM16, int kN8>
DIT_DEVICE void multiply_by_weight(float (&c)[kM16][kN8][4], const T* a, int a_pitch, const WeightRows<T>& b, int depth,
                                   int first, int stride, int lane) {
#pragma unroll 1
  for (int k = first * kProductStep<T>; k < depth; k += stride * kProductStep<T>) {
    if constexpr (is_half_type<T>) {
      weight_product::mma_step(c, a, a_pitch, b, depth, k, lane);
    } else {
#pragma unroll
      for (int j = 0; j < kN8; ++j) weight_product::fma_step(c, j, a, a_pitch, b, depth, k, lane);
    }
  }
}

}  // namespace dit
