// SPDX-License-Identifier: Apache-2.0
// Launches attention's CUDA kernels.
#include "ops/attention/attention.cuh"

namespace dit {
namespace {

// Calls f(element, width) with a null pointer of the element type and the head width as a constant, where there are
// kernels for them.
template <class F>
cudaError_t dispatch_heads(Dtype dtype, int64_t dim, F&& f) {
  const auto with_width = [&](auto* element) {
    if (dim == 64) return f(element, std::integral_constant<int, 64>());
    if (dim == 72) return f(element, std::integral_constant<int, 72>());
    return cudaErrorInvalidValue;
  };
  if (dtype == Dtype::bf16) return with_width(static_cast<__nv_bfloat16*>(nullptr));
  if (dtype == Dtype::f16) return with_width(static_cast<__half*>(nullptr));
  return cudaErrorInvalidValue;
}

int64_t tiles_of(int64_t size, int64_t tile) { return (size + tile - 1) / tile; }

// Kernels number tokens, heads and blocks in 32 bits, up to the end of the last tile.
bool fits(int64_t tokens, int64_t blocks) { return tokens <= INT32_MAX - 256 && blocks <= INT32_MAX; }

}  // namespace

int attention_forward_cuda(const AttentionForward& a, void* stream) {
  const int64_t tiles = tiles_of(a.queries, kAttentionQueries), blocks = a.batch * a.heads * tiles;
  if (blocks == 0) return cudaSuccess;
  if (!fits(std::max(a.queries, a.keys), blocks)) return cudaErrorInvalidValue;
  return dispatch_heads(a.dtype, a.dim, [&](auto* element, auto width) {
    using T = std::remove_pointer_t<decltype(element)>;
    return launch(attention_forward_kernel<T, decltype(width)::value>, dim3(unsigned(blocks)), dim3(kAttentionThreads),
                  sizeof(AttentionRoom<T>), static_cast<cudaStream_t>(stream), a, int(tiles));
  });
}

}  // namespace dit
