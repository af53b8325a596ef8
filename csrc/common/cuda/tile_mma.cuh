// SPDX-License-Identifier: Apache-2.0
// A warp's matrix product on operands in shared memory, written once for all element types:
//
//   c (M, N) += a (M, K) b (K, N),   sums float32
//
// 16-bit types use the tensor cores. float32 uses fused multiply-adds, never TF32: products are exact.
//
// Accumulators, `TileSums<M, N> c`, M a multiple of 16, N of 8: with g = lane / 4 and t = lane % 4, the lane owns
//   c[i][j][e]   row 16 i + g + 8 (e / 2), column 8 j + 2t + e % 2          (tile_row, tile_column)
//
// Operands have a pitch, the distance between rows in elements, and one of two layouts:
//   Major::k    the elements along K lie side by side:  a[m * pitch + k]   b[n * pitch + k]
//   Major::mn   those along M or N do:                  a[k * pitch + m]   b[k * pitch + n]
// Rows start at multiples of 16 bytes. With a pitch from `tile_pitch` eight rows lie in different banks.
//
// Sixteen bytes of a row of c at a time: if column n of b lies where `spread_column(n)` says, the lane's accumulators
// of every 32 columns are 8 neighbours in memory, columns 32 q + 8t .. 32 q + 8t + 7, in order (`spread_sums`).
#pragma once
#include "common/cuda/ptx.cuh"

namespace dit {

enum class Major { k, mn };

template <int kM, int kN>
using TileSums = float[kM / 16][kN / 8][4];

// c += part
template <int kM16, int kN8>
DIT_DEVICE void add_sums(const float (&part)[kM16][kN8][4], float (&c)[kM16][kN8][4]) {
#pragma unroll
  for (int i = 0; i < kM16; ++i)
#pragma unroll
    for (int j = 0; j < kN8; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e) c[i][j][e] += part[i][j][e];
}

// The least pitch for rows of kWidth elements, an odd number of 16-byte units.
template <class T, int kWidth>
constexpr int tile_pitch = ((kWidth * int(sizeof(T)) + 15) / 16 | 1) * 16 / int(sizeof(T));

DIT_DEVICE int tile_row(int i, int e, int lane) { return 16 * i + lane / 4 + 8 * (e / 2); }
DIT_DEVICE int tile_column(int j, int e, int lane) { return 8 * j + lane % 4 * 2 + e % 2; }

// Of the 5 low bits of a column, (t, j, e) becomes (j, t, e).
DIT_DEVICE int spread_column(int n) { return (n & ~31) | (n % 8 / 2) * 8 | (n % 32 / 8) * 2 | n % 2; }

// Row 16 i + g + 8 half, columns 32 q + 8t + (0..7).
template <int kM16, int kN8>
DIT_DEVICE void spread_sums(const float (&c)[kM16][kN8][4], int i, int half, int q, float (&out)[8]) {
#pragma unroll
  for (int j = 0; j < 4; ++j)
#pragma unroll
    for (int e = 0; e < 2; ++e) out[2 * j + e] = c[i][4 * q + j][2 * half + e];
}

namespace tile {

// Fragments of mma.m16n8k16. ldmatrix takes the address of row lane % 8 of the 8x8 matrix lane / 8.
template <Major kMajor, class T>
DIT_DEVICE void load_a(uint32_t (&r)[4], const T* a, int pitch, int m, int k, int lane) {
  const int row = lane % 8, low = lane / 8 % 2 * 8, high = lane / 16 * 8;
  if constexpr (kMajor == Major::k)
    ldmatrix_x4(r, a + (m + low + row) * pitch + k + high);
  else
    ldmatrix_x4_trans(r, a + (k + high + row) * pitch + m + low);
}

// Of two neighbouring 8-column tiles: r[0], r[1] of the first.
template <Major kMajor, class T>
DIT_DEVICE void load_b_pair(uint32_t (&r)[4], const T* b, int pitch, int n, int k, int lane) {
  const int row = lane % 8, low = lane / 8 % 2 * 8, high = lane / 16 * 8;
  if constexpr (kMajor == Major::k)
    ldmatrix_x4(r, b + (n + high + row) * pitch + k + low);
  else
    ldmatrix_x4_trans(r, b + (k + low + row) * pitch + n + high);
}

template <Major kMajor, class T>
DIT_DEVICE void load_b_one(uint32_t (&r)[2], const T* b, int pitch, int n, int k, int lane) {
  const int row = lane % 8, low = lane / 8 % 2 * 8;
  if constexpr (kMajor == Major::k)
    ldmatrix_x2(r, b + (n + row) * pitch + k + low);
  else
    ldmatrix_x2_trans(r, b + (k + low + row) * pitch + n);
}

// Four elements along K of one row or column; of two neighbouring ones.
template <Major kMajor>
DIT_DEVICE void load_four(float (&v)[4], const float* p, int pitch, int outer, int k) {
  if constexpr (kMajor == Major::k) {
    const float4 f = *reinterpret_cast<const float4*>(p + outer * pitch + k);
    v[0] = f.x, v[1] = f.y, v[2] = f.z, v[3] = f.w;
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) v[i] = p[(k + i) * pitch + outer];
  }
}
template <Major kMajor>
DIT_DEVICE void load_four_pairs(float (&v)[2][4], const float* p, int pitch, int outer, int k) {
  if constexpr (kMajor == Major::k) {
    load_four<kMajor>(v[0], p, pitch, outer, k);
    load_four<kMajor>(v[1], p, pitch, outer + 1, k);
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 f = *reinterpret_cast<const float2*>(p + (k + i) * pitch + outer);
      v[0][i] = f.x, v[1][i] = f.y;
    }
  }
}

template <Major kA, Major kB, class T, int kM16, int kN8>
DIT_DEVICE void step16(float (&c)[kM16][kN8][4], const T* a, int a_pitch, const T* b, int b_pitch, int k, int lane) {
  uint32_t a_part[kM16][4];
#pragma unroll
  for (int i = 0; i < kM16; ++i) load_a<kA>(a_part[i], a, a_pitch, 16 * i, k, lane);
#pragma unroll
  for (int j = 0; j + 1 < kN8; j += 2) {
    uint32_t b_part[4];
    load_b_pair<kB>(b_part, b, b_pitch, 8 * j, k, lane);
#pragma unroll
    for (int i = 0; i < kM16; ++i) {
      mma_m16n8k16<T>(c[i][j], a_part[i], b_part[0], b_part[1]);
      mma_m16n8k16<T>(c[i][j + 1], a_part[i], b_part[2], b_part[3]);
    }
  }
  if constexpr (kN8 % 2 == 1) {
    uint32_t b_part[2];
    load_b_one<kB>(b_part, b, b_pitch, 8 * (kN8 - 1), k, lane);
#pragma unroll
    for (int i = 0; i < kM16; ++i) mma_m16n8k16<T>(c[i][kN8 - 1], a_part[i], b_part[0], b_part[1]);
  }
}

template <Major kA, Major kB, int kM16, int kN8>
DIT_DEVICE void step4(float (&c)[kM16][kN8][4], const float* a, int a_pitch, const float* b, int b_pitch, int k,
                      int lane) {
  float a_part[kM16][2][4];
#pragma unroll
  for (int i = 0; i < kM16; ++i)
#pragma unroll
    for (int half = 0; half < 2; ++half)
      load_four<kA>(a_part[i][half], a, a_pitch, tile_row(i, 2 * half, lane), k);
#pragma unroll
  for (int j = 0; j < kN8; ++j) {
    float b_part[2][4];
    load_four_pairs<kB>(b_part, b, b_pitch, tile_column(j, 0, lane), k);
#pragma unroll
    for (int i = 0; i < kM16; ++i)
#pragma unroll
      for (int e = 0; e < 4; ++e)
#pragma unroll
        for (int kk = 0; kk < 4; ++kk) c[i][j][e] = fmaf(a_part[i][e / 2][kk], b_part[e % 2][kk], c[i][j][e]);
  }
}

}  // namespace tile

// c += a b over `depth` elements of K, a multiple of 16. All lanes of the warp must call it.
template <Major kA, Major kB, class T, int kM16, int kN8>
DIT_DEVICE void tile_mma(float (&c)[kM16][kN8][4], const T* a, int a_pitch, const T* b, int b_pitch, int depth,
                         int lane) {
  if constexpr (is_half_type<T>) {
#pragma unroll 2
    for (int k = 0; k < depth; k += 16) tile::step16<kA, kB>(c, a, a_pitch, b, b_pitch, k, lane);
  } else {
#pragma unroll 1
    for (int k = 0; k < depth; k += 4) tile::step4<kA, kB>(c, a, a_pitch, b, b_pitch, k, lane);
  }
}

}  // namespace dit
