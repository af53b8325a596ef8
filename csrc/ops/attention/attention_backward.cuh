// SPDX-License-Identifier: Apache-2.0
// CUDA kernels of attention's backward for sm_80 and later; types, widths and layouts as in attention.cuh. dq like q,
// dk like k, dv like v; dout (N, Tq, H*Dh) dense.
//
//   P = norm * exp(S - lse),   dP = dout v^T,   dS = P * (dP - delta),   delta = rowsum(P * dP)
//   dv = P^T dout,   dq = scale * dS k,   dk = scale * dS^T q
//
//   grid: block (n * H + h) owns one head of one sample, so that each result has one owner: no atomics
//   warp w: keys 32 w .. of up to 256; dk and dv of them stay in its registers (144 a thread at Dh = 72) while the block
//           walks over the queries, 64 at a time (two buffers), 16 of these in a step
//
// A step makes P^T and dP^T (32, 16) of each warp, once: five products in all, the least there are. P^T and dS^T are
// the left operands of dv and dk as they lie in registers. dS^T also goes to shared memory, and after four steps the
// warps share dq of the 64 queries: 16 rows and half of the columns each, over all keys.
//
// With at most 256 keys (128 where a block has less than 146 KB of shared memory, as on sm_86, sm_89 and sm_120) every
// row of P is in the block at once. Its warps exchange their shares of two sums a row in each step, rowsum(exp(S - lse))
// and rowsum(exp(S - lse) dP). From these come delta, in which dP cancels as in a plain softmax (out, being rounded,
// does not give it where a row has few large probabilities), and norm, 1 but for the rounding of lse: at 1e4 that is
// 5e-4. `out` is not read and there is no other kernel.
//
// More keys are taken in parts of equal size, one after the other, by the same block: dq is summed in float32 in
// scratch, by the same thread each time, and rounded with the last part. Then delta = rowsum(dout * out) comes from a
// kernel of its own and norm is 1: two more products over all keys would be the price of the exact ones.
//
// P and dS are rounded to storage as operands, everything else is float32. A result is rounded once.
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
  T *k, *v;      // (keys, Dh)
  T* ds;         // transposed: (keys, 64 queries)
  T* q[2];       // (64 queries, Dh)
  T* dout[2];
  float* sums[2];  // (warps, kSums)

  DIT_DEVICE AttentionBackwardRoom(const KeyParts& parts) {
    const int size = parts.keys() * kHeadPitch;
    k = dynamic_smem<T>();
    v = k + size;
    ds = v + size;
    for (int i = 0; i < 2; ++i) {
      q[i] = ds + size + i * kStage;
      dout[i] = q[i] + 2 * kStage;
      sums[i] = reinterpret_cast<float*>(ds + size + 4 * kStage) + i * parts.warps * kSums;
    }
  }
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

// Of this thread's four queries of a step, 8 j + 2 t + e.
struct QueryRows {
  float lse[2][2], delta[2][2], norm[2][2];  // lse in base 2
};

// p = exp(S - lse), 0 for keys that do not exist; p holds q k^T. `left`: the warp's keys.
DIT_DEVICE void probabilities(StepSums& p, const QueryRows& rows, float step, int left, int lane) {
#pragma unroll
  for (int i = 0; i < 2; ++i)
#pragma unroll
    for (int j = 0; j < 2; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float value = exp2_approx(fmaf(p[i][j][e], step, -rows.lse[j][e % 2]));
        p[i][j][e] = tile_row(i, e, lane) < left ? value : 0.f;
      }
}

// norm and delta from the shares of all warps. A barrier of the block; `sums` must not be written before the next one.
DIT_DEVICE void exchange_sums(const StepSums& p, const StepSums& dp, float* sums, int warps, QueryRows& rows,
                              int lane) {
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
  const float mine = sum_over_groups(share, lane);
  const int g = lane / 4;
  sums[int(threadIdx.x) / 32 * 32 + g / 4 * 16 + tile_column(g / 2 % 2, g % 2, lane)] = mine;
  __syncthreads();
  float total = 0.f;  // lanes 0 to 15: of P of query `lane`, then of P dP
  for (int w = 0; w < warps; ++w) total += sums[w * 32 + lane];
  const float other = __shfl_xor_sync(~0u, total, 16), ratio = (lane < 16 ? 1.f : total) / (lane < 16 ? total : other);
#pragma unroll
  for (int j = 0; j < 2; ++j)
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      rows.norm[j][e] = __shfl_sync(~0u, ratio, tile_column(j, e, lane));
      rows.delta[j][e] = __shfl_sync(~0u, ratio, 16 + tile_column(j, e, lane));
    }
}

// dv += P^T dout, dk += dS^T q, and dS^T to shared memory.
template <class T, int kDim>
DIT_DEVICE void add_step(StepSums& p, StepSums& dp, const QueryRows& rows, const T* q, const T* dout, T* ds,
                         TileSums<kWarpKeys, kDim>& dk, TileSums<kWarpKeys, kDim>& dv, int lane) {
  uint32_t a[2][4], b[2][4];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
#pragma unroll
    for (int j = 0; j < 2; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        p[i][j][e] *= rows.norm[j][e % 2];
        dp[i][j][e] = p[i][j][e] * (dp[i][j][e] - rows.delta[j][e % 2]);
      }
    sums_as_operand<T>(p[i][0], p[i][1], a[i]);
    sums_as_operand<T>(dp[i][0], dp[i][1], b[i]);
#pragma unroll
    for (int r = 0; r < 4; ++r)
      *reinterpret_cast<uint32_t*>(ds + tile_row(i, r % 2 * 2, lane) * kHeadPitch + tile_column(r / 2, 0, lane)) =
          b[i][r];
  }
  multiply_rows<T, kDim>(dv, a, dout, lane);
  multiply_rows<T, kDim>(dk, b, q, lane);
}

// Where dq of a head goes, and the float32 sums of earlier parts of the keys.
template <class T>
struct QueryGradient {
  HeadRows<T> dq;
  float* sums;  // (Tq, Dh)
  int queries;
  float scale;
};

// dq of 16 queries, columns `column` .. + kColumns: scale * dS k over `keys` keys, after what `first` parts summed. ds
// and `room` (for the result) are at the first of the queries.
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

// Of the step's queries from `query` on; those that do not exist have q = dout = 0, whatever stands here. `delta` is
// null where the block finds it itself.
DIT_DEVICE QueryRows load_query_rows(const float* lse, const float* delta, int query, int queries, int lane) {
  QueryRows rows;
#pragma unroll
  for (int j = 0; j < 2; ++j)
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int row = query + tile_column(j, e, lane);
      const bool exists = row < queries;
      rows.lse[j][e] = exists ? lse[row] * kLog2e : 0.f;
      rows.delta[j][e] = delta && exists ? delta[row] : 0.f;
      rows.norm[j][e] = 1.f;
    }
  return rows;
}

template <class T, int kDim>
__global__ void __launch_bounds__(32 * kMostWarps, 1) attention_backward_kernel(AttentionBackward a, KeyParts parts) {
  constexpr int kLeft = (kDim / 8 + 1) / 2 * 8;  // columns of the left half: 32 or 40
  const AttentionBackwardRoom<T> room(parts);
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
  const int64_t item = blockIdx.x, sample = item / a.heads, head = item % a.heads;
  const int queries = int(a.queries), keys = int(a.keys);
  const bool whole = parts.count == 1;
  const HeadRows<const T> q = head_rows<T>(a.q, sample, head), k = head_rows<T>(a.k, sample, head);
  const HeadRows<const T> v = head_rows<T>(a.v, sample, head);
  const HeadRows<const T> dout = dense_rows(static_cast<const T*>(a.dout), sample, head, queries, a.heads, kDim);
  const QueryGradient<T> dq{head_rows<T>(a.dq, sample, head), a.scratch + item * queries * kDim, queries, a.scale};
  const float* lse = a.lse + item * queries;
  const float* delta = whole ? nullptr : a.scratch + (a.batch * a.heads * kDim + item) * queries;
  const int own = warp * kWarpKeys * kHeadPitch;

  const auto stage_queries = [&](int first, int buffer) {
    stage_rows<kDim>(q, first, queries, kBackwardQueries, room.q[buffer]);
    stage_rows<kDim>(dout, first, queries, kBackwardQueries, room.dout[buffer]);
    cp_async_commit();
  };
  for (int part = 0; part < parts.count; ++part) {
    const int first_key = part * parts.keys(), left = keys - first_key - warp * kWarpKeys;  // of this warp
    stage_rows<kDim>(k, first_key, keys, parts.keys(), room.k);
    stage_rows<kDim>(v, first_key, keys, parts.keys(), room.v);
    stage_queries(0, 0);
    TileSums<kWarpKeys, kDim> dk = {}, dv = {};
    for (int first = 0, buffer = 0; first < queries; first += kBackwardQueries, buffer ^= 1) {
      cp_async_wait<0>();
      __syncthreads();  // these queries have come, and nobody needs those before them any more
      if (first + kBackwardQueries < queries) stage_queries(first + kBackwardQueries, buffer ^ 1);
      const int count = min(kBackwardQueries, queries - first);
#pragma unroll 1
      for (int step = 0; step < count; step += kStepQueries) {
        if (left <= 0) break;  // never where the warps exchange sums
        const T *q_step = room.q[buffer] + step * kHeadPitch, *dout_step = room.dout[buffer] + step * kHeadPitch;
        QueryRows rows = load_query_rows(lse, delta, first + step, queries, lane);
        StepSums p = {}, dp = {};
        multiply_pairs<T, kDim>(p, room.k + own, q_step, dp, room.v + own, dout_step, lane);
        probabilities(p, rows, a.scale * kLog2e, left, lane);
        if (whole) exchange_sums(p, dp, room.sums[step / kStepQueries % 2], parts.warps, rows, lane);
        add_step<T, kDim>(p, dp, rows, q_step, dout_step, room.ds + own + step, dk, dv, lane);
      }
      __syncthreads();
      const int depth = min(parts.keys(), (keys - first_key + kWarpKeys - 1) / kWarpKeys * kWarpKeys);
      for (int unit = warp; unit / 2 * 16 < count; unit += parts.warps) {
        const int row = unit / 2 * 16;
        const auto with = [&](auto columns, int column) {
          query_gradient<kDim, decltype(columns)::value>(dq, room.ds + row, room.k, depth, first + row, column,
                                                         part == 0, part + 1 == parts.count,
                                                         room.q[buffer] + row * kHeadPitch, lane);
        };
        if (unit % 2 == 0) with(std::integral_constant<int, kLeft>(), 0);
        else with(std::integral_constant<int, kDim - kLeft>(), kLeft);
      }
    }
    __syncthreads();  // nobody reads keys any more
    if (left > 0) {
      place_sums(dk, a.scale, room.k + own, lane);
      place_sums(dv, 1.f, room.v + own, lane);
      __syncwarp();
      const int first = first_key + warp * kWarpKeys;
      unstage_rows<kDim>(room.k + own, head_rows<T>(a.dk, sample, head), first, keys, kWarpKeys, 0, lane);
      unstage_rows<kDim>(room.v + own, head_rows<T>(a.dv, sample, head), first, keys, kWarpKeys, 0, lane);
    }
    __syncthreads();
  }
}

// delta = rowsum(dout * out), (N, H, Tq) float32.
//
//   grid: as many blocks of 256 threads as there are rows, a row a thread
constexpr int kDeltaThreads = 256;

template <class T>
__global__ void __launch_bounds__(kDeltaThreads) attention_delta_kernel(AttentionBackward a, float* delta) {
  const int64_t i = int64_t(blockIdx.x) * kDeltaThreads + threadIdx.x, item = i / a.queries, query = i % a.queries;
  if (item >= a.batch * a.heads) return;
  const int64_t at = ((item / a.heads * a.queries + query) * a.heads + item % a.heads) * a.dim;
  const T *dout = static_cast<const T*>(a.dout) + at, *out = static_cast<const T*>(a.out) + at;
  float sum = 0.f;
  for (int64_t d = 0; d < a.dim; d += kVec<T>) {
    float x[kVec<T>], y[kVec<T>];
    unpack(load_vec(dout + d), x);
    unpack(load_vec(out + d), y);
#pragma unroll
    for (int e = 0; e < kVec<T>; ++e) sum += x[e] * y[e];
  }
  delta[i] = sum;
}

}  // namespace dit
