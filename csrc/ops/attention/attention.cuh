// SPDX-License-Identifier: Apache-2.0
// CUDA kernel of attention's forward for sm_80 and later: mma.sync, ldmatrix, cp.async. bfloat16 and float16, head
// width Dh of 64 or 72. q (N, Tq, H, Dh); k, v (N, Tk, H, Dh) with rows at 16-byte addresses; out (N, Tq, H*Dh) dense;
// lse (N, H, Tq) float32. Any Tq and Tk >= 1.
//
//   S = scale * q k^T,   P = softmax(S),   out = P v,   lse = log(sum_k exp(S))
//
//   grid: block (head * tiles + i): queries 128 i .. of one head of one sample (head = n * H + h), all its keys
//   warp w of 4: queries 32 w .. of the tile; two blocks (55 KB each) on a multiprocessor, so that one multiplies while
//   the other takes exponentials
//
// Keys come 64 at a time, into one of two buffers while the other is read. A row of 72 is four and a half depths of 16
// for q k^T (m16n8k8 takes the rest) and nine columns of 8 for P v: no multiplication is spent on padding.
// The largest logit so far and the sum of exponentials are kept a row, online; P is rounded to storage as the operand
// of P v, everything else is float32, exponentials are base 2. out is rounded once.
//
// Saved for backward: q, k, v, out, lse.
#pragma once
#include <cfloat>

#include "common/cuda/launch.h"
#include "common/cuda/tile_mma.cuh"
#include "common/cuda/vec.cuh"
#include "ops/attention/attention.h"

namespace dit {

constexpr int kAttentionThreads = 128, kAttentionQueries = 128, kAttentionKeys = 64;
constexpr float kLog2e = 1.44269504088896f, kLn2 = 0.69314718055994f;
constexpr int kHeadPitch = 72;  // of a row in shared memory: an odd number of 16-byte units, whatever Dh

// One head of one sample: row t is at rows + t * stride.
template <class T>
struct HeadRows {
  T* rows;
  int64_t stride;

  DIT_DEVICE T* row(int t) const { return rows + t * stride; }
};
template <class T>
DIT_DEVICE HeadRows<const T> head_rows(const Heads& x, int64_t sample, int64_t head) {
  return {static_cast<const T*>(x.data) + sample * x.stride.sample + head * x.stride.head, x.stride.token};
}
template <class T>
DIT_DEVICE HeadRows<T> head_rows(const MutableHeads& x, int64_t sample, int64_t head) {
  return {static_cast<T*>(x.data) + sample * x.stride.sample + head * x.stride.head, x.stride.token};
}
// Of a dense (N, T, H * Dh).
template <class T>
DIT_DEVICE HeadRows<T> dense_rows(T* x, int64_t sample, int64_t head, int64_t tokens, int64_t heads, int dim) {
  return {x + (sample * tokens * heads + head) * dim, heads * dim};
}

// All threads copy `rows` rows from row `first` on, those past `count` as zeros. Leaves copies by cp.async under way.
template <int kDim, class T>
DIT_DEVICE void stage_rows(const HeadRows<const T>& from, int first, int count, int rows, T* to) {
  constexpr int kUnits = kDim / kVec<T>;
#pragma unroll 1
  for (int i = int(threadIdx.x); i < rows * kUnits; i += int(blockDim.x)) {
    const int r = i / kUnits, c = i % kUnits * kVec<T>;
    const bool exists = first + r < count;
    cp_async16(to + r * kHeadPitch + c, exists ? from.row(first + r) + c : from.rows, exists);
  }
}

// A warp copies kColumns columns of `rows` rows from shared memory to row `first` on, those before `count`.
template <int kColumns, class T>
DIT_DEVICE void unstage_rows(const T* from, const HeadRows<T>& to, int first, int count, int rows, int column,
                             int lane) {
  constexpr int kUnits = kColumns / kVec<T>;
#pragma unroll 1
  for (int i = lane; i < rows * kUnits; i += 32) {
    const int r = i / kUnits, c = column + i % kUnits * kVec<T>;
    if (first + r < count) store_vec(to.row(first + r) + c, load_vec(from + r * kHeadPitch + c));
  }
}

// Columns 64 .. 71 of 16 rows, of 32: a[0], a[1] of m16n8k8, or b of two neighbouring 8-column tiles.
template <class T>
DIT_DEVICE void load_tail16(uint32_t (&r)[2], const T* rows, int lane) {
  ldmatrix_x2(r, rows + lane % 16 * kHeadPitch + 64);
}
template <class T>
DIT_DEVICE void load_tail32(uint32_t (&r)[2][2], const T* rows, int lane) {
  uint32_t all[4];
  ldmatrix_x4(all, rows + lane * kHeadPitch + 64);
#pragma unroll
  for (int i = 0; i < 4; ++i) r[i / 2][i % 2] = all[i];
}

// What a thread holds of 16 columns of sums, rounded, as the left operand of the next product.
template <class T>
DIT_DEVICE void sums_as_operand(const float (&left)[4], const float (&right)[4], uint32_t (&a)[4]) {
  a[0] = pack<T>(left[0], left[1]);
  a[1] = pack<T>(left[2], left[3]);
  a[2] = pack<T>(right[0], right[1]);
  a[3] = pack<T>(right[2], right[3]);
}

// c (32, kDim) += a (32, 16) b (16, kDim), a in registers and b 16 rows in shared memory.
template <class T, int kDim>
DIT_DEVICE void multiply_rows(TileSums<32, kDim>& c, const uint32_t (&a)[2][4], const T* b, int lane) {
#pragma unroll
  for (int j = 0; j + 1 < kDim / 8; j += 2) {
    uint32_t part[4];
    tile::load_b_pair<Major::mn>(part, b, kHeadPitch, 8 * j, 0, lane);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      mma_m16n8k16<T>(c[i][j], a[i], part[0], part[1]);
      mma_m16n8k16<T>(c[i][j + 1], a[i], part[2], part[3]);
    }
  }
  if constexpr (kDim / 8 % 2 == 1) {
    uint32_t part[2];
    tile::load_b_one<Major::mn>(part, b, kHeadPitch, kDim - 8, 0, lane);
#pragma unroll
    for (int i = 0; i < 2; ++i) mma_m16n8k16<T>(c[i][kDim / 8 - 1], a[i], part[0], part[1]);
  }
}

// Where a block works that owns a tile of queries: block head * tiles + i has queries 128 i .. of one head.
struct QueryTile {
  int item, first;  // n * H + h, the first query
  int64_t sample, head;

  DIT_DEVICE QueryTile(int tiles, int64_t heads)
      : item(int(blockIdx.x) / tiles),
        first(int(blockIdx.x) % tiles * kAttentionQueries),
        sample(item / int(heads)),
        head(item % int(heads)) {}
};

// stage(start, buffer) starts copies of 64 keys into one of two buffers while compute(start, buffer) reads the other.
template <class Stage, class Compute>
DIT_DEVICE void walk_keys(int keys, Stage&& stage, Compute&& compute) {
  stage(0, 0);
  for (int start = 0, buffer = 0; start < keys; start += kAttentionKeys, buffer ^= 1) {
    cp_async_wait<0>();
    __syncthreads();  // this tile has come, and nobody reads the one before it any more
    if (start + kAttentionKeys < keys) stage(start + kAttentionKeys, buffer ^ 1);
    compute(start, buffer);
  }
}

template <class T>
struct AttentionRoom {
  alignas(16) T q[kAttentionQueries * kHeadPitch];  // later the output
  alignas(16) T k[2][kAttentionKeys * kHeadPitch], v[2][kAttentionKeys * kHeadPitch];

  template <int kDim>
  DIT_DEVICE void stage_keys(const HeadRows<const T>& from_k, const HeadRows<const T>& from_v, int start, int keys,
                             int buffer) {
    stage_rows<kDim>(from_k, start, keys, kAttentionKeys, k[buffer]);
    stage_rows<kDim>(from_v, start, keys, kAttentionKeys, v[buffer]);
    cp_async_commit();
  }
};

// A warp's 32 queries as left operands.
template <class T, int kDim>
struct QueryPart {
  uint32_t main[kDim / 16][2][4], tail[2][2];

  DIT_DEVICE void load(const T* rows, bool negate, int lane) {
    const uint32_t sign = negate ? 0x80008000u : 0u;
#pragma unroll
    for (int k = 0; k < kDim / 16; ++k)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        tile::load_a<Major::k>(main[k][i], rows, kHeadPitch, 16 * i, 16 * k, lane);
#pragma unroll
        for (int e = 0; e < 4; ++e) main[k][i][e] ^= sign;
      }
    if constexpr (kDim % 16 == 8) {
      load_tail32(tail, rows, lane);
#pragma unroll
      for (int i = 0; i < 4; ++i) tail[i / 2][i % 2] ^= sign;
    }
  }

  // s[.][first], s[.][first + 1] += q k^T of 16 keys.
  template <int kN8>
  DIT_DEVICE void times_keys(float (&s)[2][kN8][4], int first, const T* k, int lane) const {
#pragma unroll
    for (int d = 0; d < kDim / 16; ++d) {
      uint32_t part[4];
      tile::load_b_pair<Major::k>(part, k, kHeadPitch, 0, 16 * d, lane);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        mma_m16n8k16<T>(s[i][first], main[d][i], part[0], part[1]);
        mma_m16n8k16<T>(s[i][first + 1], main[d][i], part[2], part[3]);
      }
    }
    if constexpr (kDim % 16 == 8) {
      uint32_t part[2];
      load_tail16(part, k, lane);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        mma_m16n8k8<T>(s[i][first], tail[i], part[0]);
        mma_m16n8k8<T>(s[i][first + 1], tail[i], part[1]);
      }
    }
  }
};

// The online softmax of a warp's 32 queries: this lane's rows 16 i + g + 8 half.
template <int kDim>
struct SoftmaxRows {
  TileSums<32, kDim> out;
  float top[2][2];    // the largest product so far
  float total[2][2];  // of this lane's columns, sum of exp(S - top)

  DIT_DEVICE void start() {
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        top[i][half] = -INFINITY;
        total[i][half] = 0.f;
#pragma unroll
        for (int j = 0; j < kDim / 8; ++j) out[i][j][2 * half] = out[i][j][2 * half + 1] = 0.f;
      }
  }

  // s becomes exp(S - top), and what has been summed is brought to the same top. S = s * step, base 2.
  DIT_DEVICE void add(TileSums<32, kAttentionKeys>& s, float step) {
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float best = top[i][half];
#pragma unroll
        for (int j = 0; j < kAttentionKeys / 8; ++j)
          best = fmaxf(best, fmaxf(s[i][j][2 * half], s[i][j][2 * half + 1]));
        best = fmaxf(best, __shfl_xor_sync(~0u, best, 1));
        best = fmaxf(best, __shfl_xor_sync(~0u, best, 2));
        const float shrink = exp2_approx((top[i][half] - best) * step), base = best * step;
        top[i][half] = best;
        float sum = 0.f;
#pragma unroll
        for (int j = 0; j < kAttentionKeys / 8; ++j)
#pragma unroll
          for (int e = 2 * half; e < 2 * half + 2; ++e) {
            s[i][j][e] = exp2_approx(fmaf(s[i][j][e], step, -base));
            sum += s[i][j][e];
          }
        total[i][half] = total[i][half] * shrink + sum;
#pragma unroll
        for (int j = 0; j < kDim / 8; ++j) {
          out[i][j][2 * half] *= shrink;
          out[i][j][2 * half + 1] *= shrink;
        }
      }
  }

  // Divides by the total, which all lanes of a row then have.
  DIT_DEVICE void finish() {
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float& sum = total[i][half];
        sum += __shfl_xor_sync(~0u, sum, 1);
        sum += __shfl_xor_sync(~0u, sum, 2);
        const float inverse = 1.f / sum;
#pragma unroll
        for (int j = 0; j < kDim / 8; ++j) {
          out[i][j][2 * half] *= inverse;
          out[i][j][2 * half + 1] *= inverse;
        }
      }
  }

  // log(sum exp(S)). exp(S - top) was taken with the rounded product of top and step: `rest` is what it lost.
  DIT_DEVICE float log_sum(int i, int half, float scale, float step) const {
    const float rest = fmaf(top[i][half], step, -(top[i][half] * step));
    return fmaf(top[i][half], scale, (log2f(total[i][half]) - rest) * kLn2);
  }
};

// A warp's sums times `factor`, rounded, to rows in shared memory.
template <class T, int kM16, int kN8>
DIT_DEVICE void place_sums(const float (&c)[kM16][kN8][4], float factor, T* to, int lane) {
#pragma unroll
  for (int i = 0; i < kM16; ++i)
#pragma unroll
    for (int j = 0; j < kN8; ++j)
#pragma unroll
      for (int e = 0; e < 4; e += 2)
        *reinterpret_cast<uint32_t*>(to + tile_row(i, e, lane) * kHeadPitch + tile_column(j, e, lane)) =
            pack<T>(c[i][j][e] * factor, c[i][j][e + 1] * factor);
}

// Products with keys that do not exist, from key `left` of the tile on, as if their logits were -inf.
DIT_DEVICE void mask_keys(TileSums<32, kAttentionKeys>& s, int left, int lane) {
#pragma unroll
  for (int i = 0; i < 2; ++i)
#pragma unroll
    for (int j = 0; j < kAttentionKeys / 8; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e)
        if (tile_column(j, e, lane) >= left) s[i][j][e] = -INFINITY;
}

template <class T, int kDim>
__global__ void __launch_bounds__(kAttentionThreads, 2) attention_forward_kernel(AttentionForward a, int tiles) {
  AttentionRoom<T>& room = *dynamic_smem<AttentionRoom<T>>();
  const QueryTile at(tiles, a.heads);
  const int lane = int(threadIdx.x) % 32, warp_row = int(threadIdx.x) / 32 * 32, first = at.first + warp_row;
  const int queries = int(a.queries), keys = int(a.keys);
  const HeadRows<const T> k = head_rows<T>(a.k, at.sample, at.head), v = head_rows<T>(a.v, at.sample, at.head);
  // A negative scale is taken as its magnitude with -q, so that the largest product is the largest logit; a scale of 0
  // would make NaN of keys that do not exist.
  const float scale = fmaxf(fabsf(a.scale), FLT_MIN);
  T* mine = room.q + warp_row * kHeadPitch;

  stage_rows<kDim>(head_rows<T>(a.q, at.sample, at.head), at.first, queries, kAttentionQueries, room.q);
  QueryPart<T, kDim> q;
  SoftmaxRows<kDim> rows;
  rows.start();
  walk_keys(
      keys, [&](int start, int buffer) { room.template stage_keys<kDim>(k, v, start, keys, buffer); },
      [&](int start, int buffer) {
        if (first >= queries) return;
        if (start == 0) q.load(mine, a.scale < 0.f, lane);
        const int left = keys - start;
        TileSums<32, kAttentionKeys> s = {};
#pragma unroll
        for (int n = 0; n < kAttentionKeys / 16; ++n)
          if (16 * n < left) q.times_keys(s, 2 * n, room.k[buffer] + 16 * n * kHeadPitch, lane);
        if (left < kAttentionKeys) mask_keys(s, left, lane);
        rows.add(s, scale * kLog2e);
#pragma unroll
        for (int n = 0; n < kAttentionKeys / 16; ++n) {
          if (16 * n >= left) continue;
          uint32_t p[2][4];
#pragma unroll
          for (int i = 0; i < 2; ++i) sums_as_operand<T>(s[i][2 * n], s[i][2 * n + 1], p[i]);
          multiply_rows<T, kDim>(rows.out, p, room.v[buffer] + 16 * n * kHeadPitch, lane);
        }
      });
  if (first >= queries) return;

  rows.finish();
  place_sums(rows.out, 1.f, mine, lane);
  __syncwarp();
  const HeadRows<T> out = dense_rows(static_cast<T*>(a.out), at.sample, at.head, a.queries, a.heads, kDim);
  unstage_rows<kDim>(mine, out, first, queries, 32, 0, lane);
#pragma unroll
  for (int r = 0; r < 4; ++r) {
    const int row = first + tile_row(r / 2, r % 2 * 2, lane);
    if (lane % 4 == 0 && row < queries)
      a.lse[int64_t(at.item) * queries + row] = rows.log_sum(r / 2, r % 2, scale, scale * kLog2e);
  }
}

}  // namespace dit
