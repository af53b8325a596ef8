// SPDX-License-Identifier: Apache-2.0
// CUDA kernel of attention's forward for sm_90a: TMA, mbarriers, wgmma, a producer warp and two consumer warpgroups.
// q (N, Tq, H, Dh), k, v (N, Tk, H, Dh) bfloat16 or float16, Dh 64 or 72, strided as TMA allows; out (N, Tq, H*Dh)
// dense; lse (N, H, Tq) float32.
//
//   S = scale * q k^T,   P = softmax(S),   out = P v,   lse = log(sum_k exp(S))
//
//   item head * tiles + i: queries 128 i .. of one head of one sample (head = n * H + h), all its keys
//   grid: with few keys, as many blocks as fit at a time, block b takes items b, b + grid, ... and loads the next while
//   it works on one; with many, one item a block
//   warpgroup g of 2: queries 64 g .. of the tile;   warp 8: loads
//
// A tile is 64 rows of one head: its first 64 columns swizzled, for Dh = 72 the other 8 plain behind them
// (ptx_sm90.cuh), 9 KB in all. wgmma goes 16 deep, so q k^T takes 72 as 80: four steps of the swizzled block, and one
// whose second half is a block of zeros that all tiles share. P v is 72 wide: wgmma of 64 and of 8 columns. Rows that
// do not exist are zeros of TMA; keys that do not exist get a logit of -inf.
//
// Why these tiles. A head of T = 256, Dh = 72 costs a multiprocessor, in cycles:
//   q k^T  256 x 256 x 80 / 2048 = 2560 and P v 256 x 256 x 72 / 2048 = 2304 (tensor cores: 2048 products a cycle; more
//          if a product 8 wide takes longer than the 4 cycles it should: there are 64)
//   exp    256 x 256 / 16 = 4096;   other arithmetic of softmax, about 5 a logit: 2600
//   TMA    q, k, v, out: 147 KB at 20 bytes a cycle = 7200 (4.8 TB/s over 132 multiprocessors at 1.75 GHz)
// 400 TFLOP/s are 10,900 cycles a head: exponentials must overlap with products and both with loads, but none is short
// of time. Two blocks share a multiprocessor: 2 x 110 KB of shared memory, 2 x 288 threads of 96 registers (18 warps,
// so five on one of the four schedulers, whose 512 registers a lane they share). Of the four warpgroups one multiplies
// while others exponentiate, and one block's start and end hide behind the other's middle; within a warpgroup nothing
// overlaps: S of the next tile beside P v of this one would take 32 registers more. 96 hold: out 36, S 32, P 16.
// Shared memory: S of 64 x 64 reads 4 KB in 32 cycles, as long as it takes; P comes from registers.
//
// The largest logit so far and the sum of exponentials are kept a row, online; logits, softmax and sums are float32,
// exponentials base 2. P is rounded to storage as the operand of P v; out is rounded once.
#pragma once
#include "common/cuda/launch.h"
#include "common/cuda/ptx_sm90.cuh"
#include "common/cuda/vec.cuh"
#include "ops/attention/attention.h"

namespace dit::sm90 {

constexpr int kRows = 64;        // of a tile
constexpr int kConsumers = 256;  // threads of two warpgroups; the warp behind them loads
constexpr int kThreads = kConsumers + 32;
constexpr int kConsumerWarps = kConsumers / 32, kGroupWarps = 4;
constexpr int kMainBytes = kRows * 2 * kSwizzleRowElements, kPlainBytes = kRows * 2 * kPlainRowElements;
constexpr float kLog2e = 1.44269504088896f, kLn2 = 0.69314718055994f;

template <int kDim>
constexpr bool kTail = kDim > kSwizzleRowElements;
template <int kDim>
constexpr int kTileBytes = kMainBytes + (kTail<kDim> ? kPlainBytes : 0);
template <int kDim>
constexpr int kZeroBytes = kTail<kDim> ? kPlainBytes : 0;

// (Dh, H, T, N) of one operand: its first 64 columns, and the other 8.
struct HeadMaps {
  TensorMap main, tail;
};

template <int kDim>
DIT_DEVICE void load_tile(unsigned char* tile, const HeadMaps& maps, uint64_t* barrier, int head, int row, int sample) {
  tma_load(tile, &maps.main, barrier, 0, head, row, sample);
  if constexpr (kTail<kDim>) tma_load(tile + kMainBytes, &maps.tail, barrier, kSwizzleRowElements, head, row, sample);
}
// All of it lies outside.
template <int kDim>
DIT_DEVICE void load_zeros(unsigned char* zeros, const HeadMaps& maps, uint64_t* barrier) {
  if constexpr (kTail<kDim>) tma_load(zeros, &maps.tail, barrier, kDim, 0, 0, 0);
}

// A thread's part of 64 rows of Dh sums.
template <int kDim>
struct HeadSums {
  float main[kSwizzleRowElements / 2] = {};
  float tail[kPlainRowElements / 2] = {};

  DIT_DEVICE void pin() {
    wgmma_pin(main);
    if constexpr (kTail<kDim>) wgmma_pin(tail);
  }
  // Calls f(element, column block of 8, e): element e of a block is row g + 8 (e / 2), column 2t + e % 2.
  template <class F>
  DIT_DEVICE void for_each(F&& f) {
#pragma unroll
    for (int i = 0; i < kSwizzleRowElements / 2; ++i) f(main[i], i / 4, i % 4);
    if constexpr (kTail<kDim>) {
#pragma unroll
      for (int i = 0; i < kPlainRowElements / 2; ++i) f(tail[i], kSwizzleRowElements / 8, i);
    }
  }
};

// d = a b^T for two tiles, over Dh.
template <class T, int kDim>
DIT_DEVICE void issue_rows_by_rows(float (&d)[kRows / 2], const unsigned char* a, const unsigned char* b,
                                   const unsigned char* zeros) {
  const uint64_t a_main = wgmma_descriptor(a), b_main = wgmma_descriptor(b);
#pragma unroll
  for (int k = 0; k < kSwizzleRowElements / 16; ++k)
    wgmma_m64k16<T, kRows>(d, wgmma_advance(a_main, 32 * k), wgmma_advance(b_main, 32 * k), k > 0);
  if constexpr (kTail<kDim>) {
    const unsigned char *a_tail = a + kMainBytes, *b_tail = b + kMainBytes;
    wgmma_m64k16<T, kRows>(d, wgmma_descriptor_plain(a_tail, uint32_t(zeros - a_tail), kPlainAtomBytes),
                           wgmma_descriptor_plain(b_tail, uint32_t(zeros - b_tail), kPlainAtomBytes), true);
  }
}

// The 8 columns behind the first 64 of a tile, transposed.
DIT_DEVICE uint64_t plain_columns(const unsigned char* tail) {
  return wgmma_descriptor_plain(tail, kPlainAtomBytes, kPlainAtomBytes);
}

// d += a b: a (64, 64) in registers, b a tile.
template <class T, int kDim>
DIT_DEVICE void issue_add(HeadSums<kDim>& d, const uint32_t (&a)[kRows / 16][4], const unsigned char* b) {
  const uint64_t main = wgmma_descriptor(b), tail = plain_columns(b + kMainBytes);
#pragma unroll
  for (int k = 0; k < kRows / 16; ++k) {
    wgmma_m64k16_registers<T, kSwizzleRowElements, true>(d.main, a[k], wgmma_advance(main, k * 2 * kSwizzleAtomBytes),
                                                         true);
    if constexpr (kTail<kDim>)
      wgmma_m64k16_registers<T, kPlainRowElements, true>(d.tail, a[k], wgmma_advance(tail, k * 2 * kPlainAtomBytes),
                                                         true);
  }
}

// Sums to a left operand: element 4j + e as above to a[k][i], row g + 8 (i % 2), columns 16 k + 8 (i / 2) + 2t, + 1.
template <class T>
DIT_DEVICE void to_operand(const float (&s)[kRows / 2], uint32_t (&a)[kRows / 16][4]) {
#pragma unroll
  for (int k = 0; k < kRows / 16; ++k)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int e = 4 * (2 * k + i / 2) + 2 * (i % 2);
      a[k][i] = pack<T>(s[e], s[e + 1]);
    }
}
DIT_DEVICE void pin_operand(uint32_t (&a)[kRows / 16][4]) {
#pragma unroll
  for (int k = 0; k < kRows / 16; ++k) wgmma_pin(a[k]);
}

// Of the four lanes that share rows.
DIT_DEVICE float row_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
  return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}
DIT_DEVICE float row_sum(float x) {
  x += __shfl_xor_sync(0xffffffffu, x, 1);
  return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

// s *= factor; columns from `columns` on become -inf.
DIT_DEVICE void scale_and_mask(float (&s)[kRows / 2], float factor, int columns, int lane) {
#pragma unroll
  for (int i = 0; i < kRows / 2; ++i) s[i] *= factor;
  if (columns < kRows) {
#pragma unroll
    for (int i = 0; i < kRows / 2; ++i)
      if (i / 4 * 8 + lane % 4 * 2 + i % 2 >= columns) s[i] = -INFINITY;
  }
}

// One arrival for the warp, once all its lanes have come here.
DIT_DEVICE void warp_arrive(uint64_t* barrier, int lane) {
  __syncwarp();
  if (lane == 0) mbarrier_arrive(barrier);
}

// w[i] of lane t of four becomes w[t] of lane i.
DIT_DEVICE void transpose_quad(uint32_t (&w)[4], int lane) {
#pragma unroll
  for (int bit = 1; bit <= 2; bit *= 2) {
    const bool upper = lane & bit;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (i & bit) continue;
      const uint32_t first = w[i], second = w[i + bit];
      const uint32_t got = __shfl_xor_sync(0xffffffffu, upper ? first : second, bit);
      w[i] = upper ? got : first;  // an index that depends on the lane would put w into local memory
      w[i + bit] = upper ? second : got;
    }
  }
}

// Stores the thread's elements of the rows `row` and row + 8 that exist. All lanes of the warp must call it. kWide: 16
// bytes at a time, after an exchange among the four lanes of a row; otherwise 4, four lanes side by side, which fill
// half a sector of L2 each time. Where registers are short the exchanges wait for each other and cost more than that.
template <class T, int kDim, bool kWide>
DIT_DEVICE void store_sums(const HeadSums<kDim>& sums, const float (&factor)[2], T* first_row, int64_t stride, int row,
                           int rows, int lane) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int r = row + 8 * half;
    T* to = first_row + r * stride;
    const auto word = [&](const float* pair) { return pack<T>(pair[0] * factor[half], pair[1] * factor[half]); };
    const auto store_word = [&](int column, const float* pair) {
      if (r < rows) *reinterpret_cast<uint32_t*>(to + column + lane % 4 * 2) = word(pair);
    };
#pragma unroll
    for (int block = 0; block < kSwizzleRowElements / 8; block += 4) {
      const float* first = sums.main + 4 * block + 2 * half;
      if constexpr (kWide) {
        Vec<T> four;
#pragma unroll
        for (int i = 0; i < 4; ++i) four.words[i] = word(first + 4 * i);
        transpose_quad(four.words, lane);
        if (r < rows) store_vec(to + (block + lane % 4) * 8, four);
      } else {
#pragma unroll
        for (int i = 0; i < 4; ++i) store_word((block + i) * 8, first + 4 * i);
      }
    }
    if constexpr (kTail<kDim>) store_word(kSwizzleRowElements, sums.tail + 2 * half);
  }
}

struct ForwardMaps {
  HeadMaps q, k, v;
};

template <int kDim>
struct ForwardRoom {
  static constexpr int kStages = 4, kQueries = 2 * kRows, kQBytes = 2 * kTileBytes<kDim>;
  static constexpr int kQ = 0, kRing = kQ + 2 * kQBytes;  // queries of this item and the next; a stage: k, v
  static constexpr int kZeros = kRing + kStages * 2 * kTileBytes<kDim>;
  static constexpr int kBarriers = kZeros + kZeroBytes<kDim>;
  static constexpr int kBytes = kBarriers + (4 + 2 * kStages) * int(sizeof(uint64_t));
};

template <int kDim>
struct ForwardBarriers {
  using Room = ForwardRoom<kDim>;
  uint64_t *q_full, *q_empty, *full, *empty;

  DIT_DEVICE explicit ForwardBarriers(unsigned char* smem)
      : q_full(reinterpret_cast<uint64_t*>(smem + Room::kBarriers)), q_empty(q_full + 2), full(q_empty + 2),
        empty(full + Room::kStages) {}
  DIT_DEVICE void init() const {
    for (int i = 0; i < 2; ++i) {
      mbarrier_init(q_full + i, 1);
      mbarrier_init(q_empty + i, kConsumerWarps);
    }
    for (int i = 0; i < Room::kStages; ++i) {
      mbarrier_init(full + i, 1);
      mbarrier_init(empty + i, kConsumerWarps);
    }
    mbarrier_init_fence();
  }
};

// 128 queries of one head; the second warpgroup has none where 64 or fewer are left.
struct QueryItem {
  int sample, head, first, groups;

  static DIT_DEVICE int per_head(const AttentionForward& a) { return (int(a.queries) + 2 * kRows - 1) / (2 * kRows); }
  static DIT_DEVICE int count(const AttentionForward& a) { return int(a.batch * a.heads) * per_head(a); }
  DIT_DEVICE QueryItem(const AttentionForward& a, int i) {
    const int here = i / per_head(a);
    sample = here / int(a.heads);
    head = here % int(a.heads);
    first = i % per_head(a) * 2 * kRows;
    groups = int(a.queries) - first > kRows ? 2 : 1;
  }
};

template <class T, int kDim, bool kStays>
DIT_DEVICE void forward_loads(const ForwardMaps& maps, const AttentionForward& a, unsigned char* smem, int tiles) {
  using Room = ForwardRoom<kDim>;
  const ForwardBarriers<kDim> barriers(smem);
  const int count = QueryItem::count(a);
  int step = 0;
  for (int i = blockIdx.x, round = 0; i < count; i += gridDim.x, ++round) {
    const QueryItem item(a, i);
    unsigned char* q = smem + Room::kQ + (round & 1) * Room::kQBytes;
    uint64_t* q_full = barriers.q_full + (round & 1);
    mbarrier_wait(barriers.q_empty + (round & 1), (round / 2 & 1) ^ 1);
    mbarrier_arrive_expect_tx(q_full, item.groups * kTileBytes<kDim> + (round == 0 ? kZeroBytes<kDim> : 0));
    for (int g = 0; g < item.groups; ++g)
      load_tile<kDim>(q + g * kTileBytes<kDim>, maps.q, q_full, item.head, item.first + g * kRows, item.sample);
    if (round == 0) load_zeros<kDim>(smem + Room::kZeros, maps.q, q_full);
    for (int j = 0; j < tiles; ++j, ++step) {
      const int stage = step % Room::kStages;
      uint64_t* full = barriers.full + stage;
      mbarrier_wait(barriers.empty + stage, (step / Room::kStages & 1) ^ 1);
      unsigned char* tile = smem + Room::kRing + stage * 2 * kTileBytes<kDim>;
      mbarrier_arrive_expect_tx(full, 2 * kTileBytes<kDim>);
      load_tile<kDim>(tile, maps.k, full, item.head, j * kRows, item.sample);
      load_tile<kDim>(tile + kTileBytes<kDim>, maps.v, full, item.head, j * kRows, item.sample);
    }
    if constexpr (!kStays) break;
  }
}

// Of two rows: the largest logit so far, and this thread's part of the sum of exponentials.
struct OnlineSoftmax {
  float top[2] = {-INFINITY, -INFINITY}, total[2] = {};

  // Turns a tile of logits into exponentials; out and total shrink to the new maximum.
  template <int kDim>
  DIT_DEVICE void add(float (&s)[kRows / 2], HeadSums<kDim>& out) {
    float best[2] = {top[0], top[1]};
#pragma unroll
    for (int i = 0; i < kRows / 2; ++i) best[i / 2 % 2] = fmaxf(best[i / 2 % 2], s[i]);
#pragma unroll
    for (int half = 0; half < 2; ++half) best[half] = row_max(best[half]);
    if (__any_sync(0xffffffffu, best[0] > top[0] || best[1] > top[1])) {
      const float shrink[2] = {exp2_approx(top[0] - best[0]), exp2_approx(top[1] - best[1])};
      total[0] *= shrink[0];
      total[1] *= shrink[1];
      out.for_each([&](float& x, int, int e) { x *= shrink[e / 2]; });
      top[0] = best[0];
      top[1] = best[1];
    }
#pragma unroll
    for (int i = 0; i < kRows / 2; ++i) {
      s[i] = exp2_approx(s[i] - top[i / 2 % 2]);
      total[i / 2 % 2] += s[i];
    }
  }
};

// One warpgroup's 64 queries: what a thread holds of them is of rows row and row + 8. `step` counts tiles of keys.
template <class T, int kDim>
DIT_DEVICE void forward_rows(const AttentionForward& a, unsigned char* smem, const ForwardBarriers<kDim>& barriers,
                             const unsigned char* q, int row, int tiles, int& step, int head, int sample, int lane) {
  using Room = ForwardRoom<kDim>;
  const unsigned char *ring = smem + Room::kRing, *zeros = smem + Room::kZeros;
  const float factor = a.scale * kLog2e;
  const int keys = int(a.keys);
  HeadSums<kDim> out;
  OnlineSoftmax softmax;
  float s[kRows / 2] = {};
  uint32_t p[kRows / 16][4];

#pragma unroll 1
  for (int j = 0; j < tiles; ++j, ++step) {
    const int stage = step % Room::kStages;
    const unsigned char *k = ring + 2 * stage * kTileBytes<kDim>, *v = k + kTileBytes<kDim>;
    mbarrier_wait(barriers.full + stage, step / Room::kStages & 1);
    wgmma_pin(s);
    wgmma_fence();
    issue_rows_by_rows<T, kDim>(s, q, k, zeros);
    wgmma_commit();
    wgmma_wait<0>();
    wgmma_pin(s);
    scale_and_mask(s, factor, keys - j * kRows, lane);
    softmax.add(s, out);
    to_operand<T>(s, p);
    pin_operand(p);
    out.pin();
    wgmma_fence();
    issue_add<T, kDim>(out, p, v);
    wgmma_commit();
    wgmma_wait<0>();
    out.pin();
    warp_arrive(barriers.empty + stage, lane);
  }

  float inverse[2];
  const int queries = int(a.queries);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float total = row_sum(softmax.total[half]);
    inverse[half] = 1.f / total;
    const int r = row + 8 * half;
    if (lane % 4 == 0 && r < queries)
      a.lse[(sample * a.heads + head) * a.queries + r] = (softmax.top[half] + log2f(total)) * kLn2;
  }
  T* to = static_cast<T*>(a.out) + (sample * a.queries * a.heads + head) * kDim;
  store_sums<T, kDim, true>(out, inverse, to, a.heads * kDim, row, queries, lane);
}

template <class T, int kDim, bool kStays>
__global__ void __launch_bounds__(kThreads, 2)
    attention_forward_sm90_kernel(const __grid_constant__ ForwardMaps maps, const AttentionForward a) {
  if constexpr (has_wgmma) {
    using Room = ForwardRoom<kDim>;
    auto* smem = dynamic_smem<unsigned char>();
    const ForwardBarriers<kDim> barriers(smem);
    const int tiles = (int(a.keys) + kRows - 1) / kRows, count = QueryItem::count(a);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, group = warp / kGroupWarps;
    if (threadIdx.x == 0) barriers.init();
    __syncthreads();
    if (threadIdx.x >= kConsumers) {
      if (threadIdx.x == kConsumers) forward_loads<T, kDim, kStays>(maps, a, smem, tiles);
      return;
    }
    int step = 0;
#pragma unroll 1
    for (int i = blockIdx.x, round = 0; i < count; i += gridDim.x, ++round) {
      const QueryItem item(a, i);
      mbarrier_wait(barriers.q_full + (round & 1), round / 2 & 1);
      if (group < item.groups) {
        const unsigned char* q = smem + Room::kQ + (round & 1) * Room::kQBytes + group * kTileBytes<kDim>;
        forward_rows<T, kDim>(a, smem, barriers, q, item.first + group * kRows + warp % kGroupWarps * 16 + lane / 4,
                              tiles, step, item.head, item.sample, lane);
      } else {
        for (int j = 0; j < tiles; ++j, ++step) {
          mbarrier_wait(barriers.full + step % Room::kStages, step / Room::kStages & 1);
          warp_arrive(barriers.empty + step % Room::kStages, lane);
        }
      }
      if constexpr (!kStays) break;
      warp_arrive(barriers.q_empty + (round & 1), lane);
    }
  }
}

}  // namespace dit::sm90
