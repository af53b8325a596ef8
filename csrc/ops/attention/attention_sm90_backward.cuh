// SPDX-License-Identifier: Apache-2.0
// CUDA kernels of attention's backward for sm_90a. Tensors, tiles and layouts as attention_sm90.cuh's; dout dense as out.
//
//   P = exp(S - lse),   dv = P^T dout,   dS = P * (dout v^T - delta),   delta = rowsum(dout * out)
//   dq = scale * dS k,   dk = scale * dS^T q
//
// Two ways, both without atomics: each result has one owner and one order of summation.
//
// A whole head (Tq <= 256, 64 < Tk <= 256): attention_dkdv_sm90_kernel<.., whole> alone, with nothing in global memory but
//   inputs and results. grid: as many blocks as multiprocessors, block b takes heads b, b + grid, ...
// Otherwise: attention_dq_sm90_kernel, which leaves three numbers a query for attention_dkdv_sm90_kernel. grid of dq:
//   block (head * tiles + i): queries 128 i ..;   of dkdv: as above, an item is 256 keys of a head
//
// The three numbers are base, norm and delta: P = exp2(S * scale * log2(e) - base) * norm.
//   Up to 256 keys (kExactKeys) the queries first walk over all keys for base, the largest logit, norm, 1 over the sum of
//   exponentials, and delta = rowsum(P * dP). Nothing that was rounded is used, neither `out` nor lse: where few
//   probabilities of a row are large, what remains of dP - delta may be as small as the rounding of `out`.
//   Beyond, base is lse and delta rowsum(dout * out), as everywhere in print; norm is 1 / rowsum(exp(S - lse)), found with
//   dq: in exact arithmetic 1, but lse is rounded, at 1e4 by up to 5e-4.
//
// dkdv. Keys are rows here: S^T = k q^T and dP^T = v dout^T, 64 keys by 64 queries at a time, so that P^T and dS^T are
// left operands in registers as they stand. Warpgroup g of 2 owns the tiles of 64 keys g and g + 2: dk and dv of 128 keys
// are its sums. A warpgroup behind them loads (its first warp): k and v of an item, and a ring of 4 stages of q and dout.
// A stage is free once both are done with it, so queries of the next head come while this one is worked on.
// Of a whole head, dS^T of a tile of queries and all keys also goes to shared memory, where it is dS transposed to the
// tensor cores; warpgroup i % 2 multiplies tile i's with k, over all keys at once: dq is not accumulated anywhere.
//   registers a thread: dk, dv 2 x 2 x 36, S and dP 64, which P and dS take over: 240 by setmaxnreg, loading warps keep 24
//   shared memory: k, v 72 KB, q, dout 72 KB, dS 2 x 32 KB, 8 KB more: 217 of 227 KB
//   a head of T = 256, Dh = 72, in cycles of a multiprocessor: tensor cores 4 x 2560 for S, dP twice, 3 x 2304 for dk, dv,
//   dq, and 192 products 8 wide, 4 to 16 each: 18,000 to 20,300; exp 2 x 4096, other arithmetic about 12 an element
//   6100; k, v, q, dout, dq, dk, dv 258 KB at 20 bytes 12,900. The warpgroups take turns at both, and queries of the next
//   head come meanwhile; k and v do not. 350 TFLOP/s are 31,300 cycles.
//
// dq. Queries are rows: S, dP, dq += dS k, dS from registers; two warpgroups of 64 queries and a warp that loads, one
// block a multiprocessor, 168 registers. Products of dq and of the next tile's S and dP are issued together; exponentials
// of one warpgroup hide behind the products of the other. At T = 1024 (seven products) a tile of 64 x 64 costs tensor
// cores 1056 to 1200 cycles in both kernels, 17,000 to 19,300 for 256 x 256; 350 TFLOP/s are 31,300.
//
// P and dS are rounded to storage as operands, everything else is float32. A result is rounded once.
#pragma once
#include "common/cuda/vec.cuh"
#include "ops/attention/attention_sm90.cuh"

namespace dit::sm90 {

struct BackwardMaps {
  HeadMaps q, k, v, dout;
};

constexpr int kKeyTiles = 4, kItemKeys = kKeyTiles * kRows;  // of an item of dkdv
constexpr int kExactKeys = kItemKeys;                        // up to which dq walks over the keys twice

// What dq leaves for dkdv, each (N, H, Tq).
struct QueryStats {
  float *base, *norm, *delta;
  DIT_DEVICE explicit QueryStats(const AttentionBackward& a)
      : base(a.scratch), norm(base + a.batch * a.heads * a.queries), delta(norm + a.batch * a.heads * a.queries) {}
};

// The sum of products of 8 elements each.
template <class T>
DIT_DEVICE float dot8(const T* x, const T* y) {
  float a[8], b[8], sum = 0.f;
  unpack(load_vec(x), a);
  unpack(load_vec(y), b);
#pragma unroll
  for (int i = 0; i < 8; ++i) sum = fmaf(a[i], b[i], sum);
  return sum;
}

// What is known of rows of queries, two a thread, after some of their keys: P = exp2(S * factor - base) / total.
struct RowStats {
  float base[2] = {-INFINITY, -INFINITY}, total[2] = {}, delta[2] = {};

  // Adds a tile of keys; s becomes something else.
  DIT_DEVICE void add(float (&s)[kRows / 2], const float (&dp)[kRows / 2], float factor, int keys, int lane) {
    scale_and_mask(s, factor, keys, lane);
    float best[2] = {base[0], base[1]};
#pragma unroll
    for (int i = 0; i < kRows / 2; ++i) best[i / 2 % 2] = fmaxf(best[i / 2 % 2], s[i]);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      best[half] = row_max(best[half]);
      const float shrink = exp2_approx(base[half] - best[half]);
      base[half] = best[half];
      total[half] *= shrink;
      delta[half] *= shrink;
    }
#pragma unroll
    for (int i = 0; i < kRows / 2; ++i) {
      const float p = exp2_approx(s[i] - base[i / 2 % 2]);
      total[i / 2 % 2] += p;
      delta[i / 2 % 2] = fmaf(p, dp[i], delta[i / 2 % 2]);
    }
  }
  DIT_DEVICE void finish() {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      total[half] = row_sum(total[half]);
      delta[half] = row_sum(delta[half]) / total[half];
    }
  }
};

// S and dP of 64 queries and 64 keys, waited for.
template <class T, int kDim>
DIT_DEVICE void multiply_queries(float (&s)[kRows / 2], float (&dp)[kRows / 2], const unsigned char* q,
                                 const unsigned char* dout, const unsigned char* k, const unsigned char* v,
                                 const unsigned char* zeros) {
  wgmma_pin(s);
  wgmma_pin(dp);
  wgmma_fence();
  issue_rows_by_rows<T, kDim>(s, q, k, zeros);
  issue_rows_by_rows<T, kDim>(dp, dout, v, zeros);
  wgmma_commit();
  wgmma_wait<0>();
  wgmma_pin(s);
  wgmma_pin(dp);
}

// ---- dq

template <int kDim>
struct DqRoom {
  static constexpr int kStages = 4, kQueries = 2 * kRows;
  static constexpr int kQ = 0, kDout = kQ + 2 * kTileBytes<kDim>, kRing = kDout + 2 * kTileBytes<kDim>;
  static constexpr int kZeros = kRing + kStages * 2 * kTileBytes<kDim>;  // a stage: a tile of k, one of v
  static constexpr int kBarriers = kZeros + kZeroBytes<kDim>;            // q, full[kStages], empty[kStages]
  static constexpr int kBytes = kBarriers + (1 + 2 * kStages) * int(sizeof(uint64_t));
};

template <int kDim>
DIT_DEVICE void dq_loads(const BackwardMaps& maps, unsigned char* smem, int first, int groups, int tiles, int walks,
                         int head, int sample) {
  using Room = DqRoom<kDim>;
  auto* q_full = reinterpret_cast<uint64_t*>(smem + Room::kBarriers);
  auto *full = q_full + 1, *empty = full + Room::kStages;
  mbarrier_arrive_expect_tx(q_full, 2 * groups * kTileBytes<kDim> + kZeroBytes<kDim>);
  for (int g = 0; g < groups; ++g) {
    load_tile<kDim>(smem + Room::kQ + g * kTileBytes<kDim>, maps.q, q_full, head, first + g * kRows, sample);
    load_tile<kDim>(smem + Room::kDout + g * kTileBytes<kDim>, maps.dout, q_full, head, first + g * kRows, sample);
  }
  load_zeros<kDim>(smem + Room::kZeros, maps.q, q_full);
  for (int j = 0; j < walks * tiles; ++j) {
    const int stage = j % Room::kStages, row = j % tiles * kRows;
    if (j >= Room::kStages) mbarrier_wait(empty + stage, (j / Room::kStages - 1) & 1);
    unsigned char* tile = smem + Room::kRing + stage * 2 * kTileBytes<kDim>;
    mbarrier_arrive_expect_tx(full + stage, 2 * kTileBytes<kDim>);
    load_tile<kDim>(tile, maps.k, full + stage, head, row, sample);
    load_tile<kDim>(tile + kTileBytes<kDim>, maps.v, full + stage, head, row, sample);
  }
}

// The row sum of dout * out, shared by the four lanes of a row.
template <class T, int kDim>
DIT_DEVICE float row_delta(const AttentionBackward& a, int64_t head_start, int row, int lane) {
  float sum = 0.f;
  if (row < a.queries) {
    const int64_t at = head_start + row * a.heads * kDim;
    for (int c = lane % 4 * 8; c < kDim; c += 32)
      sum += dot8(static_cast<const T*>(a.dout) + at + c, static_cast<const T*>(a.out) + at + c);
  }
  return row_sum(sum);
}

// One warpgroup's 64 queries; what a thread holds of them is of rows row and row + 8.
template <class T, int kDim>
DIT_DEVICE void dq_rows(const AttentionBackward& a, unsigned char* smem, int group, int row, int tiles, int head,
                        int sample, int lane) {
  using Room = DqRoom<kDim>;
  auto* q_full = reinterpret_cast<uint64_t*>(smem + Room::kBarriers);
  auto *full = q_full + 1, *empty = full + Room::kStages;
  const unsigned char *q = smem + Room::kQ + group * kTileBytes<kDim>, *ring = smem + Room::kRing;
  const unsigned char *dout = smem + Room::kDout + group * kTileBytes<kDim>, *zeros = smem + Room::kZeros;
  const int queries = int(a.queries), keys = int(a.keys);
  const int64_t item = int64_t(sample) * a.heads + head;
  const float factor = a.scale * kLog2e;
  HeadSums<kDim> dq;
  float s[kRows / 2] = {}, dp[kRows / 2] = {};
  uint32_t ds[kRows / 16][4];
  RowStats rows;
  mbarrier_wait(q_full, 0);
  int begin = 0;  // of the walk that makes dq
  if (keys <= kExactKeys) {
#pragma unroll 1
    for (; begin < tiles; ++begin) {
      const int stage = begin % Room::kStages;
      const unsigned char* k = ring + stage * 2 * kTileBytes<kDim>;
      mbarrier_wait(full + stage, begin / Room::kStages & 1);
      multiply_queries<T, kDim>(s, dp, q, dout, k, k + kTileBytes<kDim>, zeros);
      warp_arrive(empty + stage, lane);
      rows.add(s, dp, factor, keys - begin * kRows, lane);
    }
    rows.finish();
  } else {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int r = row + 8 * half;
      rows.base[half] = r < queries ? a.lse[item * queries + r] * kLog2e : 0.f;
      rows.delta[half] = row_delta<T, kDim>(a, (sample * a.queries * a.heads + head) * kDim, r, lane);
    }
  }
  // Now i counts stages: the tile of keys is i - begin.
  const int end = begin + tiles, limit = keys + begin * kRows;
  float total[2] = {};
  const auto issue = [&](int i) {
    const int stage = i % Room::kStages;
    const unsigned char* k = ring + stage * 2 * kTileBytes<kDim>;
    mbarrier_wait(full + stage, i / Room::kStages & 1);
    issue_rows_by_rows<T, kDim>(s, q, k, zeros);
    issue_rows_by_rows<T, kDim>(dp, dout, k + kTileBytes<kDim>, zeros);
    wgmma_commit();
  };
  const auto add = [&](int i) {
    wgmma_wait<0>();  // S and dP of this tile, dq += dS k of the last one
    wgmma_pin(s);
    wgmma_pin(dp);
    dq.pin();
    if (i > begin) warp_arrive(empty + (i - 1) % Room::kStages, lane);
    scale_and_mask(s, factor, limit - i * kRows, lane);
#pragma unroll
    for (int e = 0; e < kRows / 2; ++e) {
      const float p = exp2_approx(s[e] - rows.base[e / 2 % 2]);
      total[e / 2 % 2] += p;
      dp[e] = p * (dp[e] - rows.delta[e / 2 % 2]);
    }
    to_operand<T>(dp, ds);
    pin_operand(ds);
    wgmma_fence();
    issue_add<T, kDim>(dq, ds, ring + i % Room::kStages * 2 * kTileBytes<kDim>);
    wgmma_commit();
  };
  dq.pin();
  wgmma_pin(s);
  wgmma_pin(dp);
  wgmma_fence();
  issue(begin);
#pragma unroll 1
  for (int i = begin; i + 1 < end; ++i) {
    add(i);
    issue(i + 1);
  }
  add(end - 1);
  wgmma_wait<0>();
  dq.pin();
  const QueryStats stats(a);
  float factors[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float norm = 1.f / row_sum(total[half]);
    const int r = row + 8 * half;
    factors[half] = a.scale * norm;
    if (lane % 4 == 0 && r < queries) {
      stats.base[item * queries + r] = rows.base[half];
      stats.norm[item * queries + r] = norm;
      stats.delta[item * queries + r] = rows.delta[half];
    }
  }
  T* to = static_cast<T*>(a.dq.data) + sample * a.dq.stride.sample + head * a.dq.stride.head;
  store_sums<T, kDim>(dq, factors, to, a.dq.stride.token, row, queries, lane);
}

template <class T, int kDim>
__global__ void __launch_bounds__(kThreads, 1)
    attention_dq_sm90_kernel(const __grid_constant__ BackwardMaps maps, const AttentionBackward a) {
  if constexpr (has_wgmma) {
    using Room = DqRoom<kDim>;
    auto* smem = dynamic_smem<unsigned char>();
    const int queries = int(a.queries), query_tiles = (queries + Room::kQueries - 1) / Room::kQueries;
    const int tiles = (int(a.keys) + kRows - 1) / kRows, item = int(blockIdx.x) / query_tiles;
    const int first = int(blockIdx.x) % query_tiles * Room::kQueries, head = item % int(a.heads);
    const int sample = item / int(a.heads), groups = queries - first > kRows ? 2 : 1;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, group = warp / kGroupWarps;
    if (threadIdx.x == 0) {
      auto* barriers = reinterpret_cast<uint64_t*>(smem + Room::kBarriers);
      for (int i = 0; i < 1 + 2 * Room::kStages; ++i)
        mbarrier_init(barriers + i, i <= Room::kStages ? 1 : groups * kGroupWarps);
      mbarrier_init_fence();
    }
    __syncthreads();
    if (threadIdx.x == kConsumers) dq_loads<kDim>(maps, smem, first, groups, tiles, a.keys <= kExactKeys ? 2 : 1, head, sample);
    if (group < groups)
      dq_rows<T, kDim>(a, smem, group, first + group * kRows + warp % kGroupWarps * 16 + lane / 4, tiles, head, sample,
                       lane);
  }
}

// ---- dk, dv, and dq of a whole head

constexpr int kDkdvThreads = kConsumers + 128;

template <int kDim, bool kWhole>
struct DkdvRoom {
  static constexpr int kStages = 4;
  static constexpr int kTile = kTileBytes<kDim>;
  static constexpr int kK = 0, kV = kK + kKeyTiles * kTile, kRing = kV + kKeyTiles * kTile;  // a stage: q, dout
  static constexpr int kDs = kRing + kStages * 2 * kTile;  // [2][kKeyTiles] of 64 keys by 64 queries, swizzled
  static constexpr int kDsBytes = kKeyTiles * kMainBytes;
  static constexpr int kZeros = kDs + (kWhole ? 2 * kDsBytes : 0);
  // base, norm, delta of a stage's 64 queries; of a whole head, of all its queries, twice.
  static constexpr int kStats = kZeros + kZeroBytes<kDim>, kStatsOf = kWhole ? kItemKeys : kRows;
  static constexpr int kStatsBytes = (kWhole ? 2 : kStages) * 3 * kStatsOf * int(sizeof(float));
  static constexpr int kBarriers = kStats + kStatsBytes;
  static constexpr int kBytes = kBarriers + (7 + 2 * kStages) * int(sizeof(uint64_t));
};

template <int kDim, bool kWhole>
struct DkdvBarriers {
  using Room = DkdvRoom<kDim, kWhole>;
  uint64_t *full, *empty, *ds_ready, *ds_free, *kv_full, *kv_empty, *stats;

  DIT_DEVICE explicit DkdvBarriers(unsigned char* smem)
      : full(reinterpret_cast<uint64_t*>(smem + Room::kBarriers)), empty(full + Room::kStages),
        ds_ready(empty + Room::kStages), ds_free(ds_ready + 2), kv_full(ds_free + 2), kv_empty(kv_full + 1),
        stats(kv_empty + 1) {}
  DIT_DEVICE void init() const {
    for (int i = 0; i < Room::kStages; ++i) {
      mbarrier_init(full + i, 1);
      mbarrier_init(empty + i, kConsumerWarps);
    }
    for (int i = 0; i < 2; ++i) {
      mbarrier_init(ds_ready + i, kConsumerWarps);
      mbarrier_init(ds_free + i, kGroupWarps);
    }
    mbarrier_init(kv_full, 1);
    mbarrier_init(kv_empty, kConsumerWarps);
    mbarrier_init(stats, kConsumerWarps);
    mbarrier_init_fence();
  }
};

// 256 keys of one head.
struct KeyItem {
  int sample, head, first, tiles;

  static DIT_DEVICE int per_head(const AttentionBackward& a) { return (int(a.keys) + kItemKeys - 1) / kItemKeys; }
  static DIT_DEVICE int count(const AttentionBackward& a) { return int(a.batch * a.heads) * per_head(a); }
  DIT_DEVICE KeyItem(const AttentionBackward& a, int i) {
    const int here = i / per_head(a);
    sample = here / int(a.heads);
    head = here % int(a.heads);
    first = i % per_head(a) * kItemKeys;
    tiles = min(kKeyTiles, (int(a.keys) - first + kRows - 1) / kRows);
  }
  DIT_DEVICE int64_t number(const AttentionBackward& a) const { return int64_t(sample) * a.heads + head; }
};

// By one warp: the three numbers of each query of a tile; P of queries that do not exist becomes 0.
DIT_DEVICE void load_stats(const AttentionBackward& a, float* to, int64_t head, int first, int lane) {
  const QueryStats stats(a);
  for (int i = lane; i < kRows; i += 32) {
    const bool exists = first + i < a.queries;
    const int64_t at = head * a.queries + first + i;
    to[i] = exists ? stats.base[at] : INFINITY;
    to[kRows + i] = exists ? stats.norm[at] : 0.f;
    to[2 * kRows + i] = exists ? stats.delta[at] : 0.f;
  }
}

template <int kDim, bool kWhole>
DIT_DEVICE void dkdv_loads(const BackwardMaps& maps, const AttentionBackward& a, unsigned char* smem, int lane) {
  using Room = DkdvRoom<kDim, kWhole>;
  const DkdvBarriers<kDim, kWhole> barriers(smem);
  const int tiles = (int(a.queries) + kRows - 1) / kRows, count = KeyItem::count(a);
  int step = 0;
  for (int i = blockIdx.x, round = 0; i < count; i += gridDim.x, ++round) {
    const KeyItem item(a, i);
    // k and v must wait until the last item is done with; before that come as many queries as there is room for.
    const int before = round == 0 ? 0 : min(tiles, Room::kStages);
    for (int t = 0; t <= tiles; ++t) {
      if (t == before) {
        mbarrier_wait(barriers.kv_empty, (round & 1) ^ 1);
        if (lane == 0) {
          mbarrier_arrive_expect_tx(barriers.kv_full,
                                    2 * item.tiles * kTileBytes<kDim> + (round == 0 ? kZeroBytes<kDim> : 0));
          if (round == 0) load_zeros<kDim>(smem + Room::kZeros, maps.q, barriers.kv_full);
          for (int b = 0; b < item.tiles; ++b) {
            const int row = item.first + b * kRows;
            load_tile<kDim>(smem + Room::kK + b * Room::kTile, maps.k, barriers.kv_full, item.head, row, item.sample);
            load_tile<kDim>(smem + Room::kV + b * Room::kTile, maps.v, barriers.kv_full, item.head, row, item.sample);
          }
        }
      }
      if (t == tiles) break;
      const int stage = step % Room::kStages;
      unsigned char* tile = smem + Room::kRing + stage * 2 * Room::kTile;
      uint64_t* full = barriers.full + stage;
      mbarrier_wait(barriers.empty + stage, (step / Room::kStages & 1) ^ 1);
      if constexpr (!kWhole)
        load_stats(a, reinterpret_cast<float*>(smem + Room::kStats) + stage * 3 * kRows, item.number(a), t * kRows,
                   lane);
      __syncwarp();
      if (lane == 0) {
        mbarrier_arrive_expect_tx(full, 2 * Room::kTile);
        load_tile<kDim>(tile, maps.q, full, item.head, t * kRows, item.sample);
        load_tile<kDim>(tile + Room::kTile, maps.dout, full, item.head, t * kRows, item.sample);
      }
      ++step;
    }
  }
}

// A consumer's view of an item.
template <class T, int kDim, bool kWhole>
class DkdvGroup {
  using Room = DkdvRoom<kDim, kWhole>;
  static constexpr int kMine = kKeyTiles / 2;  // tiles of keys of this warpgroup

 public:
  DIT_DEVICE DkdvGroup(const AttentionBackward& a, unsigned char* smem)
      : a_(a), smem_(smem), barriers_(smem), lane_(threadIdx.x % 32), warp_(threadIdx.x / 32 % kGroupWarps),
        group_(__shfl_sync(0xffffffffu, int(threadIdx.x) / 128, 0)),  // the same for all lanes, for the compiler to see
        row_(warp_ * 16 + lane_ / 4) {}

  DIT_DEVICE void run() {
    const int tiles = (int(a_.queries) + kRows - 1) / kRows, count = KeyItem::count(a_);
    int step = 0;
#pragma unroll 1
    for (int i = blockIdx.x, round = 0; i < count; i += gridDim.x, ++round) {
      const KeyItem item(a_, i);
      mbarrier_wait(barriers_.kv_full, round & 1);
      if constexpr (kWhole) find_stats(item, tiles, round, step);
      HeadSums<kDim> dk[kMine], dv[kMine];
#pragma unroll 1
      for (int t = 0; t < tiles; ++t, ++step) queries(item, t, round, step, dk, dv);
      warp_arrive(barriers_.kv_empty, lane_);
      store(item, dk, dv);
    }
  }

 private:
  // base, norm and delta of the head's queries: warpgroup i % 2 those of tile i, whose rows are its rows here.
  DIT_DEVICE void find_stats(const KeyItem& item, int tiles, int round, int step) {
    float* all = reinterpret_cast<float*>(smem_ + Room::kStats) + (round & 1) * 3 * kItemKeys;
    float s[kRows / 2] = {}, dp[kRows / 2] = {};
#pragma unroll 1
    for (int t = group_; t < tiles; t += 2) {
      const int stage = (step + t) % Room::kStages;
      const unsigned char* q = smem_ + Room::kRing + stage * 2 * Room::kTile;
      mbarrier_wait(barriers_.full + stage, (step + t) / Room::kStages & 1);
      RowStats rows;
#pragma unroll 1
      for (int b = 0; b < item.tiles; ++b) {
        multiply_queries<T, kDim>(s, dp, q, q + Room::kTile, smem_ + Room::kK + b * Room::kTile,
                                  smem_ + Room::kV + b * Room::kTile, smem_ + Room::kZeros);
        rows.add(s, dp, a_.scale * kLog2e, int(a_.keys) - b * kRows, lane_);
      }
      rows.finish();
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int r = t * kRows + row_ + 8 * half;
        if (lane_ % 4 != 0) continue;
        all[r] = rows.base[half];
        all[kItemKeys + r] = r < a_.queries ? 1.f / rows.total[half] : 0.f;
        all[2 * kItemKeys + r] = rows.delta[half];
      }
    }
    warp_arrive(barriers_.stats, lane_);
    mbarrier_wait(barriers_.stats, round & 1);
  }

  // One tile of queries and this warpgroup's keys.
  DIT_DEVICE void queries(const KeyItem& item, int t, int round, int step, HeadSums<kDim> (&dk)[kMine],
                          HeadSums<kDim> (&dv)[kMine]) {
    const int stage = step % Room::kStages, buffer = step % 2;
    const unsigned char *q = smem_ + Room::kRing + stage * 2 * Room::kTile, *dout = q + Room::kTile;
    const float* stats = reinterpret_cast<const float*>(smem_ + Room::kStats) +
                         (kWhole ? (round & 1) * 3 * kItemKeys + t * kRows : stage * 3 * kRows);
    mbarrier_wait(barriers_.full + stage, step / Room::kStages & 1);
    if constexpr (kWhole) mbarrier_wait(barriers_.ds_free + buffer, (step / 2 & 1) ^ 1);
#pragma unroll
    for (int m = 0; m < kMine; ++m) {
      const int tile = group_ + 2 * m;
      if (tile >= item.tiles) continue;
      const unsigned char *k = smem_ + Room::kK + tile * Room::kTile, *v = smem_ + Room::kV + tile * Room::kTile;
      keys_by_queries(item, tile, k, v, q, dout, stats, smem_ + Room::kDs + buffer * Room::kDsBytes + tile * kMainBytes,
                      dk[m], dv[m]);
    }
    warp_arrive(barriers_.empty + stage, lane_);
    if constexpr (kWhole) {
      fence_proxy_async();
      warp_arrive(barriers_.ds_ready + buffer, lane_);
      if (buffer == group_) dq(item, t, buffer, step);
    }
  }

  // S^T, dP^T of 64 keys and 64 queries, and what they add to dk and dv.
  DIT_DEVICE void keys_by_queries(const KeyItem& item, int tile, const unsigned char* k, const unsigned char* v,
                                  const unsigned char* q, const unsigned char* dout, const float* stats,
                                  unsigned char* ds_tile, HeadSums<kDim>& dk, HeadSums<kDim>& dv) {
    const unsigned char* zeros = smem_ + Room::kZeros;
    const float *base = stats + lane_ % 4 * 2, *norm = base + Room::kStatsOf, *delta = norm + Room::kStatsOf;
    const float factor = a_.scale * kLog2e;
    float s[kRows / 2], dp[kRows / 2];
    wgmma_pin(s);
    wgmma_pin(dp);
    wgmma_fence();
    issue_rows_by_rows<T, kDim>(s, k, q, zeros);
    wgmma_commit();
    issue_rows_by_rows<T, kDim>(dp, v, dout, zeros);
    wgmma_commit();
    wgmma_wait<1>();
    wgmma_pin(s);
#pragma unroll
    for (int i = 0; i < kRows / 2; ++i) {
      const int column = i / 4 * 8 + i % 2;
      s[i] = exp2_approx(s[i] * factor - base[column]) * norm[column];
    }
    if constexpr (kWhole) {
      const int missing = item.first + tile * kRows + row_ - int(a_.keys);  // dS of no key must not be infinite
      if (missing + kRows > 0) {
#pragma unroll
        for (int i = 0; i < kRows / 2; ++i)
          if (missing + i / 2 % 2 * 8 >= 0) s[i] = 0.f;
      }
    }
    wgmma_wait<0>();
    wgmma_pin(dp);
#pragma unroll
    for (int i = 0; i < kRows / 2; ++i) dp[i] = s[i] * (dp[i] - delta[i / 4 * 8 + i % 2]);
    to_operand<T>(s, p_);
    to_operand<T>(dp, ds_);
    if constexpr (kWhole) keep_ds(ds_tile);
    pin_operand(p_);
    pin_operand(ds_);
    wgmma_fence();
    issue_add<T, kDim>(dv, p_, dout);
    issue_add<T, kDim>(dk, ds_, q);
    wgmma_commit();
    wgmma_wait<0>();
    dk.pin();
    dv.pin();
  }

  // dS^T of one tile of keys to shared memory, a row a key. Eight rows' chunks lie in different banks.
  DIT_DEVICE void keep_ds(unsigned char* to) const {
#pragma unroll
    for (int k = 0; k < kRows / 16; ++k)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int r = row_ + 8 * (i % 2), chunk = 2 * k + i / 2;
        *reinterpret_cast<uint32_t*>(to + r * 128 + ((chunk ^ r % 8) * 16 + lane_ % 4 * 4)) = ds_[k][i];
      }
  }

  // dq of a tile of queries, over all keys of the head.
  DIT_DEVICE void dq(const KeyItem& item, int t, int buffer, int step) {
    HeadSums<kDim> sums;
    mbarrier_wait(barriers_.ds_ready + buffer, step / 2 & 1);
    sums.pin();
    wgmma_fence();
#pragma unroll 1
    for (int b = 0; b < item.tiles; ++b) {
      const unsigned char* ds = smem_ + Room::kDs + buffer * Room::kDsBytes + b * kMainBytes;
      const unsigned char* k = smem_ + Room::kK + b * Room::kTile;
#pragma unroll
      for (int i = 0; i < kRows / 16; ++i) {
        const uint64_t left = wgmma_descriptor(ds + i * 2 * kSwizzleAtomBytes);
        wgmma_m64k16<T, kSwizzleRowElements, true, true>(sums.main, left,
                                                         wgmma_descriptor(k + i * 2 * kSwizzleAtomBytes), true);
        if constexpr (kTail<kDim>)
          wgmma_m64k16<T, kPlainRowElements, true, true>(
              sums.tail, left,
              wgmma_descriptor_plain(k + kMainBytes + i * 2 * kPlainAtomBytes, kPlainAtomBytes, kPlainAtomBytes), true);
      }
    }
    wgmma_commit();
    wgmma_wait<0>();
    sums.pin();
    warp_arrive(barriers_.ds_free + buffer, lane_);
    const float factors[2] = {a_.scale, a_.scale};
    T* to = static_cast<T*>(a_.dq.data) + item.sample * a_.dq.stride.sample + item.head * a_.dq.stride.head;
    store_sums<T, kDim>(sums, factors, to, a_.dq.stride.token, t * kRows + row_, int(a_.queries), lane_);
  }

  DIT_DEVICE void store(const KeyItem& item, HeadSums<kDim> (&dk)[kMine], HeadSums<kDim> (&dv)[kMine]) const {
    const float scale[2] = {a_.scale, a_.scale}, one[2] = {1.f, 1.f};
    const int keys = int(a_.keys);
    T* dk_rows = static_cast<T*>(a_.dk.data) + item.sample * a_.dk.stride.sample + item.head * a_.dk.stride.head;
    T* dv_rows = static_cast<T*>(a_.dv.data) + item.sample * a_.dv.stride.sample + item.head * a_.dv.stride.head;
#pragma unroll
    for (int m = 0; m < kMine; ++m) {
      const int row = item.first + (group_ + 2 * m) * kRows + row_;
      store_sums<T, kDim>(dk[m], scale, dk_rows, a_.dk.stride.token, row, keys, lane_);
      store_sums<T, kDim>(dv[m], one, dv_rows, a_.dv.stride.token, row, keys, lane_);
    }
  }

  const AttentionBackward& a_;
  unsigned char* smem_;
  const DkdvBarriers<kDim, kWhole> barriers_;
  const int lane_, warp_, group_, row_;
  uint32_t p_[kRows / 16][4], ds_[kRows / 16][4];
};

template <class T, int kDim, bool kWhole>
__global__ void __launch_bounds__(kDkdvThreads, 1)
    attention_dkdv_sm90_kernel(const __grid_constant__ BackwardMaps maps, const AttentionBackward a) {
  if constexpr (has_wgmma) {
    auto* smem = dynamic_smem<unsigned char>();
    if (threadIdx.x == 0) DkdvBarriers<kDim, kWhole>(smem).init();
    __syncthreads();
    if (threadIdx.x >= kConsumers) {
      setmaxnreg_fewer<24>();
      if (threadIdx.x < kConsumers + 32) dkdv_loads<kDim, kWhole>(maps, a, smem, threadIdx.x % 32);
    } else {
      setmaxnreg_more<240>();
      DkdvGroup<T, kDim, kWhole>(a, smem).run();
    }
  }
}

}  // namespace dit::sm90
