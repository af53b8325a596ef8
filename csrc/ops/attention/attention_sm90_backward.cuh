// SPDX-License-Identifier: Apache-2.0
// CUDA kernels of attention's backward for sm_90a: dq here, the others in attention_sm90_dkdv.cuh. Tensors, tiles and
// layouts as attention_sm90.cuh's; dout dense like out.
//
//   P = softmax(S),   dv = P^T dout,   dS = P * (dP - delta),   dP = dout v^T,   delta = rowsum(P * dP)
//   dq = scale * dS k,   dk = scale * dS^T q
//
// Two ways, both without atomics: each result has one owner and one order of summation.
//
// A whole head (Tq <= 256, 64 < Tk <= 256): attention_dkdv_sm90_kernel<.., whole> alone, with nothing in global memory
//   but inputs and results. grid: as many blocks as multiprocessors, block b takes heads b, b + grid, ...
// Otherwise: attention_dq_sm90_kernel, which leaves three numbers a query for attention_dkdv_sm90_kernel. grid of dq:
//   block (head * tiles + i): queries 128 i ..;   of dkdv: as above, an item is 256 keys of a head
//
// The three numbers are base, norm and delta: P = exp2(S * scale * log2(e) - base) * norm.
//   dq's queries first walk over all keys for base, the largest logit, norm, 1 over the sum of exponentials, and delta.
//   Nothing that was rounded is used, neither `out` nor lse: where few probabilities of a row are large, what remains of
//   dP - delta may be as small as the rounding of `out`, and lse is rounded at 1e4 by up to 5e-4. It costs two products.
//
// dkdv. Keys are rows here: S^T = k q^T and dP^T = v dout^T, 64 keys by 64 queries at a time, so that P^T and dS^T are
// left operands in registers as they stand. Warpgroup g of 2 owns the tiles of 64 keys g and g + 2: dk and dv of 128
// keys are its sums. A warp behind them loads: k and v of an item, and a ring of 4 stages of q and dout. A stage is
// free once both are done with it, so queries of the next head come while this one is worked on.
// Of a whole head, dS^T of a tile of queries and all keys also goes to shared memory, where it is dS transposed to the
// tensor cores; warpgroup i % 2 multiplies tile i's with k, over all keys at once: dq is not accumulated anywhere.
//   registers a thread: dk, dv 2 x 2 x 36, S and dP 64, which P and dS take over: 240 by setmaxnreg, who loads keeps 24
//   shared memory: k, v 72 KB, q, dout 72 KB, dS 2 x 32 KB, 4 KB more: 212 of 227 KB
//   a head of T = 256, Dh = 72, in cycles of a multiprocessor: tensor cores 4 x 2560 for S, dP twice, 3 x 2048 for dk,
//   dv, dq 64 wide, and 192 products 8 wide, 4 to 16 each: 17,200 to 19,500; exp 2 x 4096, other arithmetic about 12 an
//   element 6100; k, v, q, dout, dq, dk, dv 258 KB at 20 bytes 12,900. The warpgroups take turns at products and
//   exponentials, and queries of the next head come meanwhile; k and v do not. 350 TFLOP/s are 31,300 cycles.
//
// dq. Queries are rows: S, dP, dq += dS k, dS from registers; two warpgroups of 64 queries and a warp that loads, one
// block a multiprocessor. Products of dq and of the next tile's S and dP are issued together; exponentials of one
// warpgroup hide behind the products of the other. At T = 1024 (nine products) a tile of 64 x 64 costs tensor cores
// 1392 to 1536 cycles in both kernels, 22,300 to 24,600 for 256 x 256; 350 TFLOP/s are 31,300.
//
// P and dS are rounded to storage as operands, everything else is float32. A result is rounded once.
#pragma once
#include "ops/attention/attention_sm90.cuh"

namespace dit::sm90 {

struct BackwardMaps {
  HeadMaps q, k, v, dout;
};

// Of a block: two warpgroups that multiply, with 240 registers a thread, and one with 24, whose first warp loads.
constexpr int kBackwardThreads = kConsumers + 128;
constexpr int kKeyTiles = 4, kItemKeys = kKeyTiles * kRows;  // of an item of dkdv

template <int kDim>
constexpr bool kWideStores = !kTail<kDim>;  // of the gradients: with 72 columns, no register is left

// What dq leaves for dkdv, each (N, H, Tq).
struct QueryStats {
  float *base, *norm, *delta;
  DIT_DEVICE explicit QueryStats(const AttentionBackward& a)
      : base(a.scratch), norm(base + a.batch * a.heads * a.queries), delta(norm + a.batch * a.heads * a.queries) {}
};

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
DIT_DEVICE void dq_loads(const BackwardMaps& maps, unsigned char* smem, int first, int groups, int tiles, int head,
                         int sample) {
  using Room = DqRoom<kDim>;
  auto* q_full = reinterpret_cast<uint64_t*>(smem + Room::kBarriers);
  auto *full = q_full + 1, *empty = full + Room::kStages;
  mbarrier_arrive_expect_tx(q_full, 2 * groups * kTileBytes<kDim> + kZeroBytes<kDim>);
  for (int g = 0; g < groups; ++g) {
    load_tile<kDim>(smem + Room::kQ + g * kTileBytes<kDim>, maps.q, q_full, head, first + g * kRows, sample);
    load_tile<kDim>(smem + Room::kDout + g * kTileBytes<kDim>, maps.dout, q_full, head, first + g * kRows, sample);
  }
  load_zeros<kDim>(smem + Room::kZeros, maps.q, q_full);
  for (int j = 0; j < 2 * tiles; ++j) {
    const int stage = j % Room::kStages, row = j % tiles * kRows;
    if (j >= Room::kStages) mbarrier_wait(empty + stage, (j / Room::kStages - 1) & 1);
    unsigned char* tile = smem + Room::kRing + stage * 2 * kTileBytes<kDim>;
    mbarrier_arrive_expect_tx(full + stage, 2 * kTileBytes<kDim>);
    load_tile<kDim>(tile, maps.k, full + stage, head, row, sample);
    load_tile<kDim>(tile + kTileBytes<kDim>, maps.v, full + stage, head, row, sample);
  }
}

// A warpgroup's 64 queries; what a thread holds of them is of rows row and row + 8.
template <class T, int kDim>
class DqGroup {
  using Room = DqRoom<kDim>;

 public:
  DIT_DEVICE DqGroup(const AttentionBackward& a, unsigned char* smem, int group, int row, int head, int sample)
      : a_(a), ring_(smem + Room::kRing), zeros_(smem + Room::kZeros), q_(smem + Room::kQ + group * kTileBytes<kDim>),
        dout_(smem + Room::kDout + group * kTileBytes<kDim>),
        q_full_(reinterpret_cast<uint64_t*>(smem + Room::kBarriers)), full_(q_full_ + 1), empty_(full_ + Room::kStages),
        row_(row), head_(head), sample_(sample), lane_(threadIdx.x % 32) {}

  DIT_DEVICE void run(int tiles) {
    HeadSums<kDim> dq;
    float s[kRows / 2] = {}, dp[kRows / 2] = {};
    mbarrier_wait(q_full_, 0);
    const RowStats rows = walk(s, dp, tiles);
    dq.pin();
    issue(s, dp, tiles);  // stages are counted on: the tile of keys is i - tiles
#pragma unroll 1
    for (int i = tiles; i + 1 < 2 * tiles; ++i) {
      add(s, dp, rows, dq, i, tiles);
      issue(s, dp, i + 1);
    }
    add(s, dp, rows, dq, 2 * tiles - 1, tiles);
    wgmma_wait<0>();
    dq.pin();
    store(dq, rows);
  }

 private:
  // What the keys say of the rows, in a walk of its own.
  DIT_DEVICE RowStats walk(float (&s)[kRows / 2], float (&dp)[kRows / 2], int tiles) const {
    RowStats rows;
#pragma unroll 1
    for (int i = 0; i < tiles; ++i) {
      const int stage = i % Room::kStages;
      mbarrier_wait(full_ + stage, i / Room::kStages & 1);
      multiply_queries<T, kDim>(s, dp, q_, dout_, keys(stage), keys(stage) + kTileBytes<kDim>, zeros_);
      warp_arrive(empty_ + stage, lane_);
      rows.add(s, dp, factor(), int(a_.keys) - i * kRows, lane_);
    }
    rows.finish();
    return rows;
  }

  DIT_DEVICE void issue(float (&s)[kRows / 2], float (&dp)[kRows / 2], int i) const {
    const int stage = i % Room::kStages;
    mbarrier_wait(full_ + stage, i / Room::kStages & 1);
    wgmma_pin(s);
    wgmma_pin(dp);
    wgmma_fence();
    issue_rows_by_rows<T, kDim>(s, q_, keys(stage), zeros_);
    issue_rows_by_rows<T, kDim>(dp, dout_, keys(stage) + kTileBytes<kDim>, zeros_);
    wgmma_commit();
  }

  // dq += dS k of the tile whose S and dP are under way.
  DIT_DEVICE void add(float (&s)[kRows / 2], float (&dp)[kRows / 2], const RowStats& rows, HeadSums<kDim>& dq, int i,
                      int tiles) {
    wgmma_wait<0>();  // and dq of the last tile
    wgmma_pin(s);
    wgmma_pin(dp);
    dq.pin();
    if (i > tiles) warp_arrive(empty_ + (i - 1) % Room::kStages, lane_);
    scale_and_mask(s, factor(), int(a_.keys) - (i - tiles) * kRows, lane_);
#pragma unroll
    for (int e = 0; e < kRows / 2; ++e) {
      dp[e] = exp2_approx(s[e] - rows.base[e / 2 % 2]) * (dp[e] - rows.delta[e / 2 % 2]);
    }
    to_operand<T>(dp, ds_);
    pin_operand(ds_);
    wgmma_fence();
    issue_add<T, kDim>(dq, ds_, keys(i % Room::kStages));
    wgmma_commit();
  }

  DIT_DEVICE void store(HeadSums<kDim>& dq, const RowStats& rows) const {
    const QueryStats stats(a_);
    const int queries = int(a_.queries);
    float factors[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float norm = 1.f / rows.total[half];
      const int r = row_ + 8 * half;
      factors[half] = a_.scale * norm;
      if (lane_ % 4 == 0 && r < queries) {
        stats.base[item() * queries + r] = rows.base[half];
        stats.norm[item() * queries + r] = norm;
        stats.delta[item() * queries + r] = rows.delta[half];
      }
    }
    T* to = static_cast<T*>(a_.dq.data) + sample_ * a_.dq.stride.sample + head_ * a_.dq.stride.head;
    store_sums<T, kDim, kWideStores<kDim>>(dq, factors, to, a_.dq.stride.token, row_, queries, lane_);
  }

  DIT_DEVICE const unsigned char* keys(int stage) const { return ring_ + stage * 2 * kTileBytes<kDim>; }
  DIT_DEVICE float factor() const { return a_.scale * kLog2e; }
  DIT_DEVICE int64_t item() const { return int64_t(sample_) * a_.heads + head_; }

  const AttentionBackward& a_;
  const unsigned char *ring_, *zeros_, *q_, *dout_;
  uint64_t *q_full_, *full_, *empty_;
  const int row_, head_, sample_, lane_;
  uint32_t ds_[kRows / 16][4];
};

template <class T, int kDim>
__global__ void __launch_bounds__(kBackwardThreads, 1)
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
    if (threadIdx.x >= kConsumers) {
      setmaxnreg_fewer<24>();
      if (threadIdx.x == kConsumers) dq_loads<kDim>(maps, smem, first, groups, tiles, head, sample);
      return;
    }
    setmaxnreg_more<240>();
    if (group < groups)
      DqGroup<T, kDim>(a, smem, group, first + group * kRows + warp % kGroupWarps * 16 + lane / 4, head, sample)
          .run(tiles);
  }
}

}  // namespace dit::sm90
