// SPDX-License-Identifier: Apache-2.0
// dk and dv on sm_90a, and dq too where a block has a whole head: see attention_sm90_backward.cuh.
#pragma once
#include "ops/attention/attention_sm90_backward.cuh"

namespace dit::sm90 {

template <int kDim, bool kWhole>
struct DkdvRoom {
  static constexpr int kStages = 4;
  static constexpr int kTile = kTileBytes<kDim>;
  static constexpr int kK = 0, kV = kK + kKeyTiles * kTile, kRing = kV + kKeyTiles * kTile;  // a stage: q, dout
  static constexpr int kDs = kRing + kStages * 2 * kTile;  // [2][kKeyTiles] of 64 keys by 64 queries, swizzled
  static constexpr int kDsBytes = kKeyTiles * kMainBytes;
  static constexpr int kZeros = kDs + (kWhole ? 2 * kDsBytes : 0);
  // base, norm, delta of a stage's 64 queries; of a whole head, of all its queries.
  static constexpr int kStats = kZeros + kZeroBytes<kDim>, kStatsOf = kWhole ? kItemKeys : kRows;
  static constexpr int kStatsBytes = (kWhole ? 1 : kStages) * 3 * kStatsOf * int(sizeof(float));
  static constexpr int kBarriers = kStats + kStatsBytes;
  static constexpr int kBytes = kBarriers + (5 + 2 * kStages) * int(sizeof(uint64_t));
};

template <int kDim, bool kWhole>
struct DkdvBarriers {
  using Room = DkdvRoom<kDim, kWhole>;
  uint64_t *full, *empty, *ds_ready, *kv_full, *kv_empty, *stats;

  DIT_DEVICE explicit DkdvBarriers(unsigned char* smem)
      : full(reinterpret_cast<uint64_t*>(smem + Room::kBarriers)), empty(full + Room::kStages),
        ds_ready(empty + Room::kStages), kv_full(ds_ready + 2), kv_empty(kv_full + 1), stats(kv_empty + 1) {}
  DIT_DEVICE void init() const {
    for (int i = 0; i < Room::kStages; ++i) {
      mbarrier_init(full + i, kWhole ? 1 : 32);
      mbarrier_init(empty + i, kConsumerWarps);
    }
    for (int i = 0; i < 2; ++i) mbarrier_init(ds_ready + i, kConsumerWarps);
    mbarrier_init(kv_full, 1);
    mbarrier_init(kv_empty, kConsumerWarps);
    mbarrier_init(stats, kConsumers);
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
      if (lane == 0) {
        mbarrier_arrive_expect_tx(full, 2 * Room::kTile);
        load_tile<kDim>(tile, maps.q, full, item.head, t * kRows, item.sample);
        load_tile<kDim>(tile + Room::kTile, maps.dout, full, item.head, t * kRows, item.sample);
      } else if constexpr (!kWhole) {
        mbarrier_arrive(full);  // of its stats, as in find_stats
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
        group_(__shfl_sync(0xffffffffu, int(threadIdx.x) / 128, 0)),  // so that the compiler sees it is one a warp
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
      for (int t = 0; t < tiles; ++t, ++step) queries(item, t, step, dk, dv);
      warp_arrive(barriers_.kv_empty, lane_);
      store(item, dk, dv);
    }
  }

 private:
  // base, norm and delta of the head's queries: warpgroup i % 2 those of tile i, whose rows are its rows here. Both are
  // done with the last head's, or its k and v would still be there.
  DIT_DEVICE void find_stats(const KeyItem& item, int tiles, int round, int step) {
    float* all = reinterpret_cast<float*>(smem_ + Room::kStats);
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
    mbarrier_arrive(barriers_.stats);  // each for itself: racecheck of compute-sanitizer sees no other order
    mbarrier_wait(barriers_.stats, round & 1);
  }

  // One tile of queries and this warpgroup's keys.
  DIT_DEVICE void queries(const KeyItem& item, int t, int step, HeadSums<kDim> (&dk)[kMine],
                          HeadSums<kDim> (&dv)[kMine]) {
    const int stage = step % Room::kStages, buffer = step % 2;
    const unsigned char *q = smem_ + Room::kRing + stage * 2 * Room::kTile, *dout = q + Room::kTile;
    const float* stats = reinterpret_cast<const float*>(smem_ + Room::kStats) +
                         (kWhole ? t * kRows : stage * 3 * kRows);
    mbarrier_wait(barriers_.full + stage, step / Room::kStages & 1);
#pragma unroll
    for (int m = 0; m < kMine; ++m) {
      const int tile = group_ + 2 * m;
      if (tile >= item.tiles) continue;
      const unsigned char *k = smem_ + Room::kK + tile * Room::kTile, *v = smem_ + Room::kV + tile * Room::kTile;
      unsigned char* ds = smem_ + Room::kDs + buffer * Room::kDsBytes + tile * kMainBytes;
      keys_by_queries(item, tile, k, v, q, dout, stats, ds, dk[m], dv[m]);
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

  // dq of a tile of queries, over all keys of the head. Nobody need say when dS has been read: of those who write this
  // buffer next, one has read it, the other has waited for the other buffer since, where the reader arrived afterwards.
  DIT_DEVICE void dq(const KeyItem& item, int t, int buffer, int step) {
    HeadSums<kDim> sums;
    mbarrier_wait(barriers_.ds_ready + buffer, step / 2 & 1);
    sums.pin();
#pragma unroll 1
    for (int b = 0; b < item.tiles; ++b) {
      wgmma_fence();
      const unsigned char* ds = smem_ + Room::kDs + buffer * Room::kDsBytes + b * kMainBytes;
      const unsigned char* k = smem_ + Room::kK + b * Room::kTile;
      const uint64_t left = wgmma_descriptor(ds), main = wgmma_descriptor(k), tail = plain_columns(k + kMainBytes);
#pragma unroll
      for (int i = 0; i < kRows / 16; ++i) {
        const int bytes = i * 2 * kSwizzleAtomBytes;
        wgmma_m64k16<T, kSwizzleRowElements, true, true>(sums.main, wgmma_advance(left, bytes),
                                                         wgmma_advance(main, bytes), true);
        if constexpr (kTail<kDim>)
          wgmma_m64k16<T, kPlainRowElements, true, true>(sums.tail, wgmma_advance(left, bytes),
                                                         wgmma_advance(tail, i * 2 * kPlainAtomBytes), true);
      }
      wgmma_commit();
    }
    wgmma_wait<0>();
    sums.pin();
    const float factors[2] = {a_.scale, a_.scale};
    T* to = static_cast<T*>(a_.dq.data) + item.sample * a_.dq.stride.sample + item.head * a_.dq.stride.head;
    store_sums<T, kDim, kWideStores<kDim>>(sums, factors, to, a_.dq.stride.token, t * kRows + row_, int(a_.queries),
                                           lane_);
  }

  DIT_DEVICE void store(const KeyItem& item, HeadSums<kDim> (&dk)[kMine], HeadSums<kDim> (&dv)[kMine]) const {
    const float scale[2] = {a_.scale, a_.scale}, one[2] = {1.f, 1.f};
    const int keys = int(a_.keys);
    T* dk_rows = static_cast<T*>(a_.dk.data) + item.sample * a_.dk.stride.sample + item.head * a_.dk.stride.head;
    T* dv_rows = static_cast<T*>(a_.dv.data) + item.sample * a_.dv.stride.sample + item.head * a_.dv.stride.head;
#pragma unroll
    for (int m = 0; m < kMine; ++m) {
      const int row = item.first + (group_ + 2 * m) * kRows + row_;
      store_sums<T, kDim, kWideStores<kDim>>(dk[m], scale, dk_rows, a_.dk.stride.token, row, keys, lane_);
      store_sums<T, kDim, kWideStores<kDim>>(dv[m], one, dv_rows, a_.dv.stride.token, row, keys, lane_);
    }
  }

  const AttentionBackward& a_;
  unsigned char* smem_;
  const DkdvBarriers<kDim, kWhole> barriers_;
  const int lane_, warp_, group_, row_;
  uint32_t p_[kRows / 16][4], ds_[kRows / 16][4];
};

template <class T, int kDim, bool kWhole>
__global__ void __launch_bounds__(kBackwardThreads, 1)
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
