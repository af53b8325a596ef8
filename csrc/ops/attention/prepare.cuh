// SPDX-License-Identifier: Apache-2.0
// The pass of prepare.h on a GPU: 16-bit heads of a width Dh that is a multiple of 8 up to 128.
//
// A row, one head of one token, is 16 lanes of one 16-byte vector each (at Dh = 64, 72: 8, 9 of them with work), so its
// sums never leave a half-warp. A block is (16 lanes, 16 rows). Rows are numbered (n * T + t) * H + h.
//   forward   grid ceil(N*Tq*H / 16) + ceil(N*Tk*H / 16): 16 rows a block, queries first
//   backward  grid chunks(): the rows of `chunk` tokens a block, 16 at a time; a lane adds its columns of dweight and
//             dbias in registers, and the block adds its 16 rows' sums in order at the end
// Row numbers are 32 bits: 2^31 rows of 64 half-precision numbers would be 256 GB.
#pragma once
#include "common/cuda/launch.h"
#include "common/cuda/vec.cuh"
#include "ops/attention/prepare.h"

namespace dit {

constexpr int kPrepareRows = 16, kPrepareLanes = 16, kPrepareWidth = 8 * kPrepareLanes;

// Sums over the half-warp; all lanes of a warp must call it, and all receive the sum.
DIT_DEVICE float sum_half_warp(float value) {
#pragma unroll
  for (int offset = 8; offset > 0; offset /= 2) value += __shfl_xor_sync(~0u, value, offset);
  return value;
}

// One lane's place in one row of the queries or the keys.
template <class T>
struct HeadRow {
  int64_t sample;
  int token, head, column;
  bool exists;

  DIT_DEVICE HeadRow(unsigned row, unsigned rows, unsigned tokens, unsigned heads, int64_t dim) {
    const unsigned index = row / heads;
    head = int(row % heads);
    sample = index / tokens;
    token = int(index % tokens);
    column = int(threadIdx.x) * 8;
    exists = row < rows && column < dim;
  }
  DIT_DEVICE int64_t offset(const HeadStrides& s) const {
    return sample * s.sample + token * s.token + head * s.head + column;
  }
  DIT_DEVICE void load(const void* data, const HeadStrides& s, float (&out)[8]) const {
    Vec<T> v = {};
    if (exists) v = load_vec(static_cast<const T*>(data) + offset(s));
    unpack(v, out);
  }
  DIT_DEVICE void store(void* data, const HeadStrides& s, const float (&values)[8]) const {
    Vec<T> v;
    pack(values, v);
    if (exists) store_vec(static_cast<T*>(data) + offset(s), v);
  }
};

// u = (x - mean) * rstd in place; returns rstd. Columns beyond Dh stay 0.
DIT_DEVICE float normalize_row(float (&x)[8], int64_t dim, HeadNorm norm, float eps, bool exists) {
  if (norm == HeadNorm::none) return 1.f;
  float sum = 0.f;
  if (norm == HeadNorm::layer) {
#pragma unroll
    for (int i = 0; i < 8; ++i) sum += x[i];
    const float mean = sum_half_warp(sum) / dim;
#pragma unroll
    for (int i = 0; i < 8; ++i) x[i] = exists ? x[i] - mean : 0.f;
    sum = 0.f;
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) sum += x[i] * x[i];
  const float rstd = 1.f / sqrtf(sum_half_warp(sum) / dim + eps);
#pragma unroll
  for (int i = 0; i < 8; ++i) x[i] *= rstd;
  return rstd;
}

DIT_DEVICE void load_floats(const float* p, float (&out)[8]) {
  Vec<float> half[2] = {load_vec(p), load_vec(p + 4)};
#pragma unroll
  for (int i = 0; i < 8; ++i) out[i] = bits_to_float(half[i / 4].words[i % 4]);
}

// Turns the lane's four pairs by the angles of `token`, or back (sign -1).
DIT_DEVICE void turn_row(float (&x)[8], const float* rope, int64_t token, int64_t tokens, int64_t dim, int column,
                         float sign) {
  const float* cos_row = rope + token * (dim / 2) + column / 2;
  float cosine[4], sine[4];
  unpack(load_vec(cos_row), cosine);
  unpack(load_vec(cos_row + tokens * (dim / 2)), sine);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float even = x[2 * i], odd = x[2 * i + 1], s = sign * sine[i];
    x[2 * i] = even * cosine[i] - odd * s;
    x[2 * i + 1] = odd * cosine[i] + even * s;
  }
}

template <class T>
__global__ void __launch_bounds__(kPrepareRows* kPrepareLanes) prepare_kernel(Prepare a, unsigned query_blocks) {
  const bool is_key = blockIdx.x >= query_blocks;
  const unsigned tokens = unsigned(is_key ? a.keys : a.queries), rows = unsigned(a.batch * tokens * a.heads);
  const unsigned block = is_key ? blockIdx.x - query_blocks : blockIdx.x;
  const HeadRow<T> at(block * kPrepareRows + threadIdx.y, rows, tokens, unsigned(a.heads), a.dim);
  const Heads& in = is_key ? a.k : a.q;
  const MutableHeads& out = is_key ? a.k_out : a.q_out;
  float x[8];
  at.load(in.data, in.stride, x);
  normalize_row(x, a.dim, a.norm, a.eps, at.exists);
  if (a.affine && at.exists) {
    float weight[8], bias[8];
    load_floats(a.affine + 2 * is_key * a.dim + at.column, weight);
    load_floats(a.affine + (2 * is_key + 1) * a.dim + at.column, bias);
#pragma unroll
    for (int i = 0; i < 8; ++i) x[i] = x[i] * weight[i] + bias[i];
  }
  if (a.rope && at.exists) turn_row(x, a.rope, at.token, tokens, a.dim, at.column, 1.f);
  at.store(out.data, out.stride, x);
}

template <class T>
__global__ void __launch_bounds__(kPrepareRows* kPrepareLanes) prepare_backward_kernel(PrepareBackward a,
                                                                                         unsigned query_chunks) {
  __shared__ float room[kPrepareRows][2][kPrepareWidth];
  const bool is_key = blockIdx.x >= query_chunks;
  const int64_t chunk = is_key ? blockIdx.x - query_chunks : blockIdx.x;
  const unsigned tokens = unsigned(is_key ? a.keys : a.queries), all = unsigned(a.batch * tokens * a.heads);
  const unsigned first = unsigned(chunk * a.chunk * a.heads), end = first + unsigned(a.chunk * a.heads);
  const unsigned rows = end < all ? end : all;
  const Heads& in = is_key ? a.k : a.q;
  const MutableHeads& grad = is_key ? a.dk : a.dq;
  const int column = int(threadIdx.x) * 8;
  float weight[8], dweight[8] = {}, dbias[8] = {};
#pragma unroll
  for (int i = 0; i < 8; ++i) weight[i] = 1.f;
  if (a.affine && column < a.dim) load_floats(a.affine + 2 * is_key * a.dim + column, weight);
  for (unsigned row = first; row < rows; row += kPrepareRows) {
    const HeadRow<T> at(row + threadIdx.y, rows, tokens, unsigned(a.heads), a.dim);
    float u[8], g[8], sums[2] = {};
    at.load(in.data, in.stride, u);
    at.load(grad.data, grad.stride, g);
    const float rstd = normalize_row(u, a.dim, a.norm, a.eps, at.exists);
    if (a.rope && at.exists) turn_row(g, a.rope, at.token, tokens, a.dim, at.column, -1.f);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      dweight[i] += g[i] * u[i];
      dbias[i] += g[i];
      g[i] *= weight[i];
      sums[0] += g[i];
      sums[1] += g[i] * u[i];
    }
    const float mean_g = a.norm == HeadNorm::layer ? sum_half_warp(sums[0]) / a.dim : 0.f;
    const float mean_gu = a.norm != HeadNorm::none ? sum_half_warp(sums[1]) / a.dim : 0.f;
#pragma unroll
    for (int i = 0; i < 8; ++i) g[i] = rstd * (g[i] - mean_g - u[i] * mean_gu);
    at.store(grad.data, grad.stride, g);
  }
  if (!a.sums) return;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    room[threadIdx.y][0][column + i] = dweight[i];
    room[threadIdx.y][1][column + i] = dbias[i];
  }
  __syncthreads();
  float* out = a.sums + blockIdx.x * 4 * a.dim;
  for (int i = int(threadIdx.y * kPrepareLanes + threadIdx.x); i < 2 * a.dim; i += kPrepareRows * kPrepareLanes) {
    const int kind = i >= a.dim, at = i - kind * int(a.dim);
    float total = 0.f;
#pragma unroll 4
    for (int row = 0; row < kPrepareRows; ++row) total += room[row][kind][at];
    out[2 * is_key * a.dim + i] = total;
    out[2 * !is_key * a.dim + i] = 0.f;
  }
}

}  // namespace dit
