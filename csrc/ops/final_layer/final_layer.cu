// SPDX-License-Identifier: Apache-2.0
// Launches final_layer's CUDA kernels.
#include <algorithm>

#include "common/cuda/tuning.h"
#include "common/token_sums.h"
#include "ops/final_layer/final_layer_backward.cuh"

namespace dit {

namespace {

// Rows of D and of O elements together: 16 of each must fit a block's shared memory, 163 KB on an A100.
constexpr int64_t kMaxBytes = 8192;
// Above, 32 tokens of dy and dh would not fit: any width's kernel takes 16.
constexpr int64_t kMaxWideFeatures = 1024;

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

int64_t tokens_of(const PatchGrid& grid) { return grid.height * grid.width; }
int64_t features_of(const PatchGrid& grid) { return grid.channels * grid.patch * grid.patch; }

template <class F>
cudaError_t dispatch_final(Dtype dtype, int64_t dim, int64_t features, F&& f) {
  if (dim % 8 != 0 || (dim + features) * size_of(dtype) > kMaxBytes) return cudaErrorInvalidValue;
  if (features <= kMaxWideFeatures) return dispatch_rows(dtype, dim, f);
  return dispatch_cuda(dtype, [&](auto* element) { return f(Rows<std::remove_pointer_t<decltype(element)>, 0>{}); });
}

}  // namespace

int final_layer_forward_cuda(const FinalLayerForward& a, void* stream) {
  const int64_t tokens = tokens_of(a.grid), features = features_of(a.grid);
  if (a.batch * tokens == 0) return cudaSuccess;
  return dispatch_final(a.dtype, a.dim, features, [&](auto rows) {
    using R = decltype(rows);
    using Room = FinalForwardRoom<R>;
    const dim3 block = R::block(a.dim);
    const int64_t chunk = std::min<int64_t>(cuda_chunk_tokens(a.batch, tokens), Room::kTokens);
    const int64_t chunks = ceil_div(tokens, chunk);
    return launch(final_layer_forward_kernel<R>, dim3(unsigned(a.batch * chunks)), block,
                  Room::bytes(int(a.dim), int(features), int(block.x * block.y)), static_cast<cudaStream_t>(stream), a,
                  chunk, chunks);
  });
}

int final_layer_transpose_cuda(const FinalLayerTranspose& a, void* stream) {
  const dim3 grid(unsigned(ceil_div(a.dim, kFinalTransposeTile)), unsigned(ceil_div(a.features, kFinalTransposeTile)));
  if (a.dim == 0) return cudaSuccess;
  return dispatch_cuda(a.dtype, [&](auto* element) {
    using T = std::remove_pointer_t<decltype(element)>;
    return launch(transpose_weight_kernel<T>, grid, dim3(kFinalTransposeTile, 8), 0, static_cast<cudaStream_t>(stream),
                  static_cast<const T*>(a.weight), static_cast<T*>(a.out), a.features, a.dim);
  });
}

int64_t final_layer_group_tokens_cuda(int64_t tokens, int64_t dim, int64_t features, Dtype dtype) {
  constexpr int64_t kMaxGroups = 32;  // bounds the partial sums to 32 times the weight, in float32
  int64_t step = 0, columns = 0;
  (void)dispatch_cuda(dtype, [&](auto* element) {
    using Tile = FinalWeightTile<std::remove_pointer_t<decltype(element)>>;
    step = Tile::kTokens, columns = Tile::kColumns;
    return cudaSuccess;
  });
  const int64_t tiles = ceil_div(dim, columns) * ceil_div(features, kFinalFeatures);
  const int64_t blocks = tuning(compute_capability()).blocks;
  const int64_t groups = std::clamp<int64_t>(blocks / std::max<int64_t>(tiles, 1), 1, kMaxGroups);
  return std::max<int64_t>(ceil_div(ceil_div(tokens, groups), step), 1) * step;
}

int final_layer_backward_cuda(const FinalLayerBackward& a, void* stream) {
  const int64_t features = features_of(a.grid);
  if (a.batch * tokens_of(a.grid) == 0) return cudaSuccess;
  const cudaError_t error = dispatch_final(a.dtype, a.dim, features, [&](auto rows) {
    using R = decltype(rows);
    return launch(final_layer_token_kernel<R>, dim3(unsigned(a.batch * a.pieces)), R::block(a.dim),
                  FinalBackwardRoom<R>::bytes(int(a.dim), int(features)), static_cast<cudaStream_t>(stream), a);
  });
  if (error != cudaSuccess) return error;
  return dispatch_cuda(a.dtype, [&](auto* element) {
    using Tile = FinalWeightTile<std::remove_pointer_t<decltype(element)>>;
    const dim3 grid(unsigned(ceil_div(features, kFinalFeatures)), unsigned(ceil_div(a.dim, Tile::kColumns)),
                    unsigned(a.groups));
    return launch(final_layer_weight_kernel<Tile>, grid, dim3(Tile::kThreads), 0, static_cast<cudaStream_t>(stream), a);
  });
}

}  // namespace dit
