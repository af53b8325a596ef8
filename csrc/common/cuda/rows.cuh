// SPDX-License-Identifier: Apache-2.0
// How the AdaLN family maps tokens to threads.
//
// A thread owns one 16-byte vector of a row, the same columns for every token it meets: shift, scale and gate stay in
// its registers (where there are enough), and sums over tokens never leave them. `lanes` threads, a multiple of 16,
// make a row; `groups` rows lie side by side in a block of (lanes, groups) threads. A block walks one chunk of the
// tokens of one sample, kTokens rows a thread at a time (tuning.h), so that many loads are in flight and one barrier
// serves them all.
//
//   grid (N * chunks), chunk c of sample n at block n * chunks + c
//   pass p, slot r: token chunk * c + (p * kTokens + r) * groups + threadIdx.y
//
// The widths of the paper's models divide evenly: no thread is idle. Other widths, any multiple of 8 whose row has at
// most kMaxRowBytes, round the lanes up to whole warps.
//
//              lanes x groups      384      768     1024     1152
//              16-bit            48 x 4   96 x 3  128 x 2  144 x 2
//              32-bit            96 x 3  192 x 1  256 x 1  288 x 1
#pragma once
#include <cstdint>

#include "common/cuda/dispatch.h"
#include "common/cuda/launch.h"
#include "common/cuda/tuning.h"
#include "common/cuda/vec.cuh"

namespace dit {

constexpr int kMaxRowBytes = 12288;  // 768 threads of one vector; more would leave too few registers

template <class Element, int kWidth>  // kWidth 0: known at run time
struct Rows {
  using T = Element;
  static constexpr int kDim = kWidth;
  static constexpr int kLanes = kDim / kVec<T>;
  static constexpr int kGroups = kDim == 0 ? 0 : kLanes > 144 ? 1 : kLanes == 48 ? 4 : 288 / kLanes;
  static constexpr int kMaxThreads = kDim == 0 ? 768 : kLanes * kGroups;
  // On a multiprocessor: one loads while the others compute. Three where a thread has little to load.
  static constexpr int kMinBlocks = kDim == 0 ? 1 : 2, kMoreBlocks = kDim == 0 ? 1 : 3;
  static constexpr int kHalfWarps = kMaxThreads / 16;

  // Rows a thread holds at once: one where blocks may be so large that registers are short.
  template <int kTuned>
  static constexpr int kTokens = kDim == 0 ? 1 : kTuned;

  static dim3 block(int64_t dim) {
    if (kDim != 0) return dim3(kLanes, kGroups);
    const unsigned lanes = unsigned(dim / kVec<T> + 31) / 32 * 32;
    return dim3(lanes, lanes < 256 ? 256 / lanes : 1);
  }
};

// One thread's place in all this.
template <class R>
struct Place {
  int dim, column, group, groups;
  bool active;  // its columns exist

  DIT_DEVICE explicit Place(int64_t width)
      : dim(R::kDim ? R::kDim : int(width)),
        column(int(threadIdx.x) * kVec<typename R::T>),
        group(int(threadIdx.y)),
        groups(R::kDim ? R::kGroups : int(blockDim.y)),
        active(R::kDim != 0 || column < dim) {}

  DIT_DEVICE int lanes() const { return R::kDim ? R::kLanes : int(blockDim.x); }

  // The thread's vector of row `row`; zeros where there is no such token or column.
  DIT_DEVICE Vec<typename R::T> load(const void* tensor, int64_t row, bool exists) const {
    if (!exists || !active) return {};
    return load_vec(static_cast<const typename R::T*>(tensor) + row * dim + column);
  }
  DIT_DEVICE void store(void* tensor, int64_t row, bool exists, const Vec<typename R::T>& v) const {
    if (exists && active) store_vec(static_cast<typename R::T*>(tensor) + row * dim + column, v);
  }
  // The thread's vector of row n of a modulation tensor (N, D) with a row stride.
  DIT_DEVICE Vec<typename R::T> modulation(const void* tensor, int64_t n, int64_t stride) const {
    if (!active) return {};
    return load_vec(static_cast<const typename R::T*>(tensor) + n * stride + column);
  }
};

// The chunk of tokens that a block walks.
struct Chunk {
  int64_t sample, index, first, last;

  DIT_DEVICE Chunk(int64_t chunk, int64_t chunks, int64_t tokens)
      : sample(blockIdx.x / chunks),
        index(blockIdx.x % chunks),
        first(index * chunk),
        last(first + chunk < tokens ? first + chunk : tokens) {}
};

// Room for sum_rows in shared memory. Two turns, so that one barrier a call is enough: a turn is written again only
// after the barrier of the call in between.
template <int kValues, int kHalfWarps>
struct SumRoom {
  float part[2][kHalfWarps][kValues];
};

// Sums each of `values` over the threads of a row, in a fixed order; every thread of the row receives the sums. All
// threads of the block must call it.
template <int kValues, int kHalfWarps, class R>
DIT_DEVICE void sum_rows(float (&values)[kValues], SumRoom<kValues, kHalfWarps>& room, int& turn, const Place<R>& at) {
#pragma unroll
  for (int offset = 8; offset > 0; offset /= 2)
#pragma unroll
    for (int i = 0; i < kValues; ++i) values[i] += __shfl_xor_sync(~0u, values[i], offset);
  const int row_start = at.group * (at.lanes() / 16);
  if (threadIdx.x % 16 == 0) {
#pragma unroll
    for (int i = 0; i < kValues; ++i) room.part[turn][row_start + threadIdx.x / 16][i] = values[i];
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kValues; ++i) values[i] = 0.f;
#pragma unroll 3
  for (int half_warp = 0; half_warp < at.lanes() / 16; ++half_warp)
#pragma unroll
    for (int i = 0; i < kValues; ++i) values[i] += room.part[turn][row_start + half_warp][i];
  turn ^= 1;
}

// Room for one row of sums of each group but the first.
template <class R>
struct GroupRoom {
  static constexpr int kThreads = R::kDim == 0 ? 256 : R::kGroups > 1 ? (R::kGroups - 1) * R::kLanes : 1;
  float sums[kThreads][kVec<typename R::T>];
};

// Ends a block: adds the K rows of sums over tokens of its groups, in order, and writes them to the partial sums of
// token_sums.h, (N * chunks, K, D) float32. All threads of the block must call it.
template <class R, int K, int kWidth>
DIT_DEVICE void write_token_sums(float* partial, const float (&sums)[K][kWidth], GroupRoom<R>& room,
                                 const Place<R>& at) {
  float* out = partial + int64_t(blockIdx.x) * K * at.dim + at.column;
#pragma unroll
  for (int k = 0; k < K; ++k, out += at.dim) {
    if (k > 0) __syncthreads();  // the room is free again
    if (at.group > 0) {
#pragma unroll
      for (int i = 0; i < kWidth; ++i) room.sums[(at.group - 1) * at.lanes() + threadIdx.x][i] = sums[k][i];
    }
    __syncthreads();
    if (at.group > 0 || !at.active) continue;
    float total[kWidth];
#pragma unroll
    for (int i = 0; i < kWidth; ++i) total[i] = sums[k][i];
    for (int g = 1; g < at.groups; ++g)
#pragma unroll
      for (int i = 0; i < kWidth; ++i) total[i] += room.sums[(g - 1) * at.lanes() + threadIdx.x][i];
#pragma unroll
    for (int i = 0; i < kWidth; i += 4)
      *reinterpret_cast<float4*>(out + i) = make_float4(total[i], total[i + 1], total[i + 2], total[i + 3]);
  }
}

// Calls f with the Rows of a dtype and a width.
template <class F>
cudaError_t dispatch_rows(Dtype dtype, int64_t dim, F&& f) {
  if (dim % 8 != 0 || dim * size_of(dtype) > kMaxRowBytes) return cudaErrorInvalidValue;
  return dispatch_cuda(dtype, [&](auto* element) {
    using T = std::remove_pointer_t<decltype(element)>;
    switch (dim) {
      case 384: return f(Rows<T, 384>{});
      case 768: return f(Rows<T, 768>{});
      case 1024: return f(Rows<T, 1024>{});
      case 1152: return f(Rows<T, 1152>{});
      default: return f(Rows<T, 0>{});
    }
  });
}

}  // namespace dit
