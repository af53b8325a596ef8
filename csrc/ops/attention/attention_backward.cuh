// SPDX-License-Identifier: Apache-2.0
// CUDA kernels of attention's backward for sm_80 and later; types, widths and layouts as in attention.cuh. dq like q,
// dk like k, dv like v; dout (N, Tq, H*Dh) dense.
//
//   P = exp(S - lse),   dP = dout v^T,   dS = P * (dP - delta),   delta = rowsum(P * dP) / rowsum(P)
//   dv = P^T dout,   dq = scale * dS k,   dk = scale * dS^T q
//
//   grid: block (n * H + h) owns one head of one sample, so that each result has one owner: no atomics
//   warp w: keys 32 w .. of up to 256; dk and dv of them stay in its registers (144 a thread at Dh = 72) while the
//           block walks over the queries, 64 at a time (two buffers), 16 of these in a step
//
// A step makes P^T and dP^T (32, 16) of each warp, once: five products in all, the least there are. P^T and dS^T are
// the left operands of dv and dk as they lie in registers. dS^T also goes to shared memory, and after four steps the
// warps share dq of the 64 queries: 16 rows and half of the columns each, over all keys.
//
// delta is not rowsum(dout * out): out is rounded, and where few probabilities of a row are large, what remains of
// dP - delta may be as small as that. With at most 256 keys (128 where a block has less than 146 KB of shared memory,
// as on sm_86, sm_89 and sm_120) every row of P is in the block at once, and its warps exchange their shares of the two
// sums in each step, multiplying P^T dout meanwhile. Then there is no other kernel. `out` is never read.
//
// More keys are taken in parts of equal size, one after the other, by the same block: dq is summed in float32 in
// scratch, by the same thread each time, and rounded with the last part. delta then comes from a kernel of its own, at
// the price of making S and dP twice: seven products.
//
// P and dS are rounded to storage as operands, everything else is float32. A result is rounded once. The rounding of
// lse scales a row of P by up to 1 +- 5e-4 at logits of 1e4: a quarter of the rounding to bfloat16, as much as that to
// float16.
#pragma once
#include "ops/attention/attention.cuh"

namespace dit {

constexpr int kWarpKeys = 32, kMostWarps = 8, kBackwardQueries = 64, kStepQueries = 16;

// How a block divides the keys.
struct KeyParts {
  int count, warps;  // of a block; each part is 32 * warps keys but the last, which may be shorter

  __host__ __device__ constexpr int keys() const { return kWarpKeys * warps; }
};

// Shared memory of a block, all of it dynamic.
template <class T>
struct AttentionBackwardRoom {
  static constexpr int kStage = kBackwardQueries * kHeadPitch;
  static constexpr int kSums = 2 * kStepQueries;  // of a warp in a step: of P, then of P dP
  T *k, *v;     // (keys, Dh)
  T* ds;        // transposed: (keys, 64 queries)
  T* stages;    // two of q and dout (64 queries, Dh)
  float* sums;  // two of (warps, kSums)

  DIT_DEVICE explicit AttentionBackwardRoom(const KeyParts& parts)
      : k(dynamic_smem<T>()),
        v(k + parts.keys() * kHeadPitch),
        ds(v + parts.keys() * kHeadPitch),
        stages(ds + parts.keys() * kHeadPitch),
        sums(reinterpret_cast<float*>(stages + 4 * kStage)) {}
  DIT_DEVICE T* q(int buffer) const { return stages + 2 * buffer * kStage; }
  DIT_DEVICE T* dout(int buffer) const { return q(buffer) + kStage; }
  DIT_DEVICE float* step_sums(const KeyParts& parts, int turn) const { return sums + turn * parts.warps * kSums; }

  __host__ __device__ static constexpr int bytes(const KeyParts& parts) {
    return (3 * parts.keys() * kHeadPitch + 4 * kStage) * int(sizeof(T)) + 2 * parts.warps * kSums * int(sizeof(float));
  }
};

using StepSums = TileSums<kWarpKeys, kStepQueries>;

// c (32 keys, 16 queries) += x y^T of a warp's 32 rows x and 16 rows y, for two such pairs at once.
template <class T, int kDim>
DIT_DEVICE void multiply_pairs(StepSums& c0, const T* x0, const T* y0, StepSums& c1, const T* x1, const T* y1,
                               int lane) {
#pragma unroll
  for (int d = 0; d < kDim / 16; ++d) {
    tile::step16<Major::k, Major::k>(c0, x0, kHeadPitch, y0, kHeadPitch, 16 * d, lane);
    tile::step16<Major::k, Major::k>(c1, x1, kHeadPitch, y1, kHeadPitch, 16 * d, lane);
  }
  if constexpr (kDim % 16 == 8) {
    const auto tail = [&](StepSums& c, const T* x, const T* y) {
      uint32_t a[2][2], b[2];
      load_tail32(a, x, lane);
      load_tail16(b, y, lane);
#pragma unroll
      for (int i = 0; i < 4; ++i) mma_m16n8k8<T>(c[i / 2][i % 2], a[i / 2], b[i % 2]);
    };
    tail(c0, x0, y0);
    tail(c1, x1, y1);
  }
}

// The sum of each of 8 values over the lanes that differ in bits 2 to 4: lane 4 g + t receives value g.
DIT_DEVICE float sum_over_groups(float (&value)[8], int lane) {
#pragma unroll
  for (int half = 4; half > 0; half /= 2) {
    const bool upper = lane & 4 * half;
#pragma unroll
    for (int i = 0; i < half; ++i) {
      const float sent = upper ? value[i] : value[i + half], kept = upper ? value[i + half] : value[i];
      value[i] = kept + __shfl_xor_sync(~0u, sent, 4 * half);
    }
  }
  return value[0];
}

// A number of each of this thread's four queries of a step, 8 j + 2 t + e.
using QueryRow = float[2][2];

// Of a head's numbers; 0 for queries that do not exist, whose q and dout are 0.
DIT_DEVICE void load_row(const float* numbers, int query, int queries, QueryRow& row, int lane) {
#pragma unroll
  for (int j = 0; j < 2; ++j)
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int i = query + tile_column(j, e, lane);
      row[j][e] = i < queries ? numbers[i] : 0.f;
    }
}

// p = exp(S - lse) where p was q k^T, 0 for keys that do not exist. `left`: the warp's keys.
DIT_DEVICE void probabilities(StepSums& p, const QueryRow& lse, float scale, int left, int lane) {
#pragma unroll
  for (int i = 0; i < 2; ++i)
#pragma unroll
    for (int j = 0; j < 2; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e) p[i][j][e] = exp2_approx(kLog2e * fmaf(p[i][j][e], scale, -lse[j][e % 2]));
  if (left >= kWarpKeys) return;
#pragma unroll
  for (int i = 0; i < 2; ++i)
#pragma unroll
    for (int j = 0; j < 2; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e)
        if (tile_row(i, e, lane) >= left) p[i][j][e] = 0.f;
}

// The warp's share of rowsum(P) and of rowsum(P dP), of 16 queries each, to its 32 of `sums`.
DIT_DEVICE void share_sums(const StepSums& p, const StepSums& dp, float* sums, int lane) {
  float share[8] = {};
#pragma unroll
  for (int i = 0; i < 2; ++i)
#pragma unroll
    for (int j = 0; j < 2; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        share[2 * j + e % 2] += p[i][j][e];
        share[4 + 2 * j + e % 2] += p[i][j][e] * dp[i][j][e];
      }
  const int g = lane / 4;
  const float mine = sum_over_groups(share, lane);
  sums[g / 4 * kStepQueries + tile_column(g / 2 % 2, g % 2, lane)] = mine;
}

// delta from the shares of all warps, after a barrier.
DIT_DEVICE void collect_delta(const float* sums, int warps, QueryRow& delta, int lane) {
  float total = 0.f;  // of P in the lower half of the warp, of P dP in the upper
#pragma unroll
  for (int w = 0; w < kMostWarps; ++w)
    if (w < warps) total += sums[w * 2 * kStepQueries + lane];
  const float other = __shfl_xor_sync(~0u, total, 16);
  const float ratio = lane < 16 ? __fdividef(other, total) : __fdividef(total, other);
#pragma unroll
  for (int j = 0; j < 2; ++j)
#pragma unroll
    for (int e = 0; e < 2; ++e) delta[j][e] = __shfl_sync(~0u, ratio, tile_column(j, e, lane));
}

template <class T>
DIT_DEVICE void step_as_operand(const StepSums& c, uint32_t (&a)[2][4]) {
#pragma unroll
  for (int i = 0; i < 2; ++i) sums_as_operand<T>(c[i][0], c[i][1], a[i]);
}

// dS^T of a step as an operand, and in shared memory for dq.
template <class T>
DIT_DEVICE void logit_gradients(const StepSums& p, const StepSums& dp, const QueryRow& delta, uint32_t (&a)[2][4],
                                T* ds, int lane) {
  StepSums c;
#pragma unroll
  for (int i = 0; i < 2; ++i)
#pragma unroll
    for (int j = 0; j < 2; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e) c[i][j][e] = p[i][j][e] * (dp[i][j][e] - delta[j][e % 2]);
  step_as_operand<T>(c, a);
#pragma unroll
  for (int i = 0; i < 2; ++i)
#pragma unroll
    for (int r = 0; r < 4; ++r)
      *reinterpret_cast<uint32_t*>(ds + tile_row(i, r % 2 * 2, lane) * kHeadPitch + tile_column(r / 2, 0, lane)) =
          a[i][r];
}

// Where dq of a head goes, and its float32 sums over the parts of keys there have been.
template <class T>
struct QueryGradient {
  HeadRows<T> dq;
  float* sums;  // (Tq, Dh)
  int queries;
  float scale;
};

// scale * dS k of 16 queries, kColumns columns from `column` on; `first`, `last`: which part of the keys this is. ds
// and `room`, for the result, are at the first of the queries.
template <int kDim, int kColumns, class T>
DIT_DEVICE void query_gradient(const QueryGradient<T>& to, const T* ds, const T* k, int keys, int query, int column,
                               bool first, bool last, T* room, int lane) {
  TileSums<16, kColumns> c = {};
  tile_mma<Major::mn, Major::mn>(c, ds, kHeadPitch, k + column, kHeadPitch, keys, lane);
#pragma unroll
  for (int j = 0; j < kColumns / 8; ++j)
#pragma unroll
    for (int e = 0; e < 4; e += 2) {
      const int row = query + tile_row(0, e, lane);
      if ((first && last) || row >= to.queries) continue;
      float2& sum = *reinterpret_cast<float2*>(to.sums + int64_t(row) * kDim + column + tile_column(j, e, lane));
      if (!first) {
        const float2 before = sum;
        c[0][j][e] += before.x;
        c[0][j][e + 1] += before.y;
      }
      if (!last) sum = make_float2(c[0][j][e], c[0][j][e + 1]);
    }
  if (!last) return;
  place_sums(c, to.scale, room + column, lane);
  __syncwarp();
  unstage_rows<kColumns>(room, to.dq, query, to.queries, 16, column, lane);
}

// The block's warps share dq of up to 64 queries: 16 rows and half of the columns at a time.
template <int kDim, class T>
DIT_DEVICE void share_query_gradients(const QueryGradient<T>& to, const AttentionBackwardRoom<T>& room,
                                      const KeyParts& parts, int part, int keys, int buffer, int first, int lane) {
  constexpr int kLeft = (kDim / 8 + 1) / 2 * 8;  // columns of the left half: 32 or 40
  const int here = min(parts.keys(), (keys - part * parts.keys() + kWarpKeys - 1) / kWarpKeys * kWarpKeys);
  for (int unit = int(threadIdx.x) / 32; unit < 2 * kBackwardQueries / 16; unit += parts.warps) {
    const int row = unit / 2 * 16;
    if (first + row >= to.queries) break;
    const auto half = [&](auto columns, int column) {
      query_gradient<kDim, decltype(columns)::value>(to, room.ds + row, room.k, here, first + row, column, part == 0,
                                                     part + 1 == parts.count, room.q(buffer) + row * kHeadPitch, lane);
    };
    if (unit % 2 == 0) half(std::integral_constant<int, kLeft>(), 0);
    else half(std::integral_constant<int, kDim - kLeft>(), kLeft);
  }
}

// A warp's sums over queries, times `factor`, through its rows of shared memory to rows `first` .. of a head.
template <int kDim, class T>
DIT_DEVICE void store_key_gradients(const TileSums<kWarpKeys, kDim>& c, float factor, T* room, const HeadRows<T>& to,
                                    int first, int keys, int lane) {
  place_sums(c, factor, room, lane);
  __syncwarp();
  unstage_rows<kDim>(room, to, first, keys, kWarpKeys, 0, lane);
}

template <class T, int kDim>
__global__ void __launch_bounds__(32 * kMostWarps, 1) attention_backward_kernel(AttentionBackward a, KeyParts parts) {
  const AttentionBackwardRoom<T> room(parts);
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32, own = warp * kWarpKeys * kHeadPitch;
  const int64_t item = blockIdx.x, sample = item / a.heads, head = item % a.heads;
  const int queries = int(a.queries), keys = int(a.keys);
  const HeadRows<const T> q = head_rows<T>(a.q, sample, head);
  const HeadRows<const T> dout = dense_rows(static_cast<const T*>(a.dout), sample, head, queries, a.heads, kDim);
  const QueryGradient<T> dq{head_rows<T>(a.dq, sample, head), a.scratch + item * queries * kDim, queries, a.scale};

  const auto stage_queries = [&](int first, int buffer) {
    stage_rows<kDim>(q, first, queries, kBackwardQueries, room.q(buffer));
    stage_rows<kDim>(dout, first, queries, kBackwardQueries, room.dout(buffer));
    cp_async_commit();
  };
  for (int part = 0; part < parts.count; ++part) {
    const int first_key = part * parts.keys(), left = keys - first_key - warp * kWarpKeys;  // of this warp
    stage_rows<kDim>(head_rows<T>(a.k, sample, head), first_key, keys, parts.keys(), room.k);
    stage_rows<kDim>(head_rows<T>(a.v, sample, head), first_key, keys, parts.keys(), room.v);
    stage_queries(0, 0);
    TileSums<kWarpKeys, kDim> dk = {}, dv = {};
    for (int first = 0, buffer = 0; first < queries; first += kBackwardQueries, buffer ^= 1) {
      cp_async_wait<0>();
      __syncthreads();  // these queries have come, and nobody needs those before them any more
      if (first + kBackwardQueries < queries) stage_queries(first + kBackwardQueries, buffer ^ 1);
      const int count = left > 0 ? min(kBackwardQueries, queries - first) : 0;  // 0 only in the last of several parts
#pragma unroll 1
      for (int step = 0; step < count; step += kStepQueries) {
        const T *q_step = room.q(buffer) + step * kHeadPitch, *dout_step = room.dout(buffer) + step * kHeadPitch;
        QueryRow lse, delta;
        StepSums p = {}, dp = {};
        uint32_t operand[2][4];
        load_row(a.lse + item * queries, first + step, queries, lse, lane);
        multiply_pairs<T, kDim>(p, room.k + own, q_step, dp, room.v + own, dout_step, lane);
        probabilities(p, lse, a.scale, left, lane);
        float* sums = room.step_sums(parts, step / kStepQueries % 2);
        if (parts.count == 1) share_sums(p, dp, sums + warp * room.kSums, lane);
        else load_row(a.scratch + (a.batch * a.heads * kDim + item) * queries, first + step, queries, delta, lane);
        step_as_operand<T>(p, operand);
        multiply_rows<T, kDim>(dv, operand, dout_step, lane);
        if (parts.count == 1) {
          __syncthreads();  // `sums` is written again in two steps, after another barrier
          collect_delta(sums, parts.warps, delta, lane);
        }
        logit_gradients(p, dp, delta, operand, room.ds + own + step, lane);
        multiply_rows<T, kDim>(dk, operand, q_step, lane);
      }
      __syncthreads();  // dS of these queries is complete, and nobody reads q any more
      share_query_gradients<kDim>(dq, room, parts, part, keys, buffer, first, lane);
    }
    __syncthreads();  // nobody reads keys any more
    if (left > 0) {
      const int first = first_key + warp * kWarpKeys;
      store_key_gradients<kDim>(dk, a.scale, room.k + own, head_rows<T>(a.dk, sample, head), first, keys, lane);
      store_key_gradients<kDim>(dv, 1.f, room.v + own, head_rows<T>(a.dv, sample, head), first, keys, lane);
    }
    __syncthreads();
  }
}

// A warp's 32 queries in the walk of attention_delta_kernel: this lane's columns of rows 16 i + g + 8 half.
struct DeltaRows {
  float lse[2][2], total[2][2], product[2][2];  // total: rowsum(P), product: rowsum(P dP)

  DIT_DEVICE void start(const float* numbers, int first, int queries, int lane) {
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      const int row = first + tile_row(r / 2, r % 2 * 2, lane);
      lse[r / 2][r % 2] = row < queries ? numbers[row] : 0.f;
      total[r / 2][r % 2] = product[r / 2][r % 2] = 0.f;
    }
  }

  // 16 keys, of which `left` exist. s = q k^T
  DIT_DEVICE void add(const TileSums<32, 16>& s, const TileSums<32, 16>& dp, float scale, int left, int lane) {
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int j = 0; j < 2; ++j)
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const float p = exp2_approx(kLog2e * fmaf(s[i][j][e], scale, -lse[i][e / 2]));
          if (tile_column(j, e, lane) >= left) continue;
          total[i][e / 2] += p;
          product[i][e / 2] += p * dp[i][j][e];
        }
  }

  DIT_DEVICE void store(float* delta, int first, int queries, int lane) {
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      float &sum = total[r / 2][r % 2], &of_products = product[r / 2][r % 2];
#pragma unroll
      for (int bit = 1; bit <= 2; bit *= 2) {
        sum += __shfl_xor_sync(~0u, sum, bit);
        of_products += __shfl_xor_sync(~0u, of_products, bit);
      }
      const int row = first + tile_row(r / 2, r % 2 * 2, lane);
      if (lane % 4 == 0 && row < queries) delta[row] = __fdividef(of_products, sum);
    }
  }
};

// delta (N, H, Tq) float32, where a block of the backward has only a part of the keys at once.
//
//   grid, block: as in the forward
template <class T, int kDim>
__global__ void __launch_bounds__(kAttentionThreads, 2)
    attention_delta_kernel(AttentionBackward a, int tiles, float* delta) {
  AttentionRoom<T>& room = *dynamic_smem<AttentionRoom<T>>();
  const QueryTile at(tiles, a.heads);
  const int lane = int(threadIdx.x) % 32, warp_row = int(threadIdx.x) / 32 * 32, first = at.first + warp_row;
  const int queries = int(a.queries), keys = int(a.keys);
  const HeadRows<const T> k = head_rows<T>(a.k, at.sample, at.head), v = head_rows<T>(a.v, at.sample, at.head);
  QueryPart<T, kDim> q, dout;
  const auto fetch = [&](QueryPart<T, kDim>& part, const HeadRows<const T>& from) {
    stage_rows<kDim>(from, at.first, queries, kAttentionQueries, room.q);
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();
    part.load(room.q + warp_row * kHeadPitch, false, lane);
    __syncthreads();
  };
  fetch(q, head_rows<T>(a.q, at.sample, at.head));
  fetch(dout, dense_rows(static_cast<const T*>(a.dout), at.sample, at.head, a.queries, a.heads, kDim));

  DeltaRows rows;
  rows.start(a.lse + int64_t(at.item) * queries, first, queries, lane);
  walk_keys(
      keys, [&](int start, int buffer) { room.template stage_keys<kDim>(k, v, start, keys, buffer); },
      [&](int start, int buffer) {
        const int count = first < queries ? min(kAttentionKeys, keys - start) : 0;
#pragma unroll 1
        for (int n = 0; n < count; n += 16) {
          TileSums<32, 16> s = {}, dp = {};
          q.times_keys(s, 0, room.k[buffer] + n * kHeadPitch, lane);
          dout.times_keys(dp, 0, room.v[buffer] + n * kHeadPitch, lane);
          rows.add(s, dp, a.scale, count - n, lane);
        }
      });
  rows.store(delta + int64_t(at.item) * queries, first, queries, lane);
}

}  // namespace dit
