// SPDX-License-Identifier: Apache-2.0
// Launches attention's CUDA kernels.
#include <algorithm>

#include "ops/attention/attention_backward.cuh"
#include "ops/attention/attention_sm90.h"
#include "ops/attention/dispatch_heads.h"

namespace dit {
namespace {

int64_t tiles_of(int64_t size, int64_t tile) { return (size + tile - 1) / tile; }

// Kernels number tokens, heads and blocks in 32 bits, up to the end of the last tile.
bool fits(int64_t tokens, int64_t blocks) { return tokens <= INT32_MAX - 256 && blocks <= INT32_MAX; }

// A block has 163 KB of shared memory and more, or 99.
KeyParts key_parts(int64_t keys) {
  static_assert(AttentionBackwardRoom<__half>::bytes({1, kMostWarps}) <= 163 << 10);
  static_assert(AttentionBackwardRoom<__half>::bytes({1, kMostWarps / 2}) <= 99 << 10);
  const int capability = compute_capability();
  const bool large = capability == 80 || capability == 87 || (capability >= 90 && capability < 120);
  const int64_t count = tiles_of(keys, kWarpKeys * (large ? kMostWarps : kMostWarps / 2));
  return {int(count), int(tiles_of(tiles_of(keys, count), kWarpKeys))};
}

int64_t rows_of(const AttentionBackward& a) { return a.batch * a.heads * a.queries; }

template <class Args>
bool use_sm90(const Args& a) {
  return compute_capability() == 90 && attention_fits_sm90(a);
}

}  // namespace

int attention_forward_cuda(const AttentionForward& a, void* stream) {
  if (use_sm90(a)) return attention_forward_sm90_cuda(a, stream);
  const int64_t tiles = tiles_of(a.queries, kAttentionQueries), blocks = a.batch * a.heads * tiles;
  if (blocks == 0) return cudaSuccess;
  if (!fits(std::max(a.queries, a.keys), blocks)) return cudaErrorInvalidValue;
  return dispatch_heads(a.dtype, a.dim, [&](auto* element, auto width) {
    using T = std::remove_pointer_t<decltype(element)>;
    return launch(attention_forward_kernel<T, decltype(width)::value>, dim3(unsigned(blocks)), dim3(kAttentionThreads),
                  sizeof(AttentionRoom<T>), static_cast<cudaStream_t>(stream), a, int(tiles));
  });
}

// With several parts of keys: sums of dq (N, H, Tq, Dh), then delta (N, H, Tq).
int64_t attention_backward_scratch_cuda(const AttentionBackward& a) {
  if (use_sm90(a)) return attention_backward_scratch_sm90_cuda(a);
  return a.keys > 0 && key_parts(a.keys).count > 1 ? rows_of(a) * (a.dim + 1) : 0;
}

int attention_backward_cuda(const AttentionBackward& a, void* stream) {
  if (use_sm90(a)) return attention_backward_sm90_cuda(a, stream);
  const int64_t blocks = a.batch * a.heads;
  if (blocks * a.keys == 0) return cudaSuccess;
  const int64_t tiles = tiles_of(a.queries, kAttentionQueries);
  if (!fits(std::max(a.queries, a.keys), blocks * std::max<int64_t>(tiles, 1))) return cudaErrorInvalidValue;
  const KeyParts parts = key_parts(a.keys);
  return dispatch_heads(a.dtype, a.dim, [&](auto* element, auto width) {
    using T = std::remove_pointer_t<decltype(element)>;
    if (parts.count > 1 && tiles > 0) {
      const cudaError_t error = launch(attention_delta_kernel<T, decltype(width)::value>,
                                       dim3(unsigned(blocks * tiles)), dim3(kAttentionThreads),
                                       sizeof(AttentionRoom<T>), static_cast<cudaStream_t>(stream), a, int(tiles),
                                       a.scratch + rows_of(a) * a.dim);
      if (error != cudaSuccess) return error;
    }
    return launch(attention_backward_kernel<T, decltype(width)::value>, dim3(unsigned(blocks)),
                  dim3(unsigned(32 * parts.warps)), size_t(AttentionBackwardRoom<T>::bytes(parts)),
                  static_cast<cudaStream_t>(stream), a, parts);
  });
}

}  // namespace dit
