// SPDX-License-Identifier: Apache-2.0
// Finishes the sums of token_sums.h on a GPU, and says how many tokens a chunk has there.
//
// Grid (ceil(D / 128), count, N): a thread adds one column of one of the `count` results over the chunks, in order.
#include "common/token_sums.h"

#include "common/cuda/dispatch.h"
#include "common/cuda/launch.h"
#include "common/cuda/tuning.h"
#include "common/cuda/vec.cuh"

namespace dit {

template <class T>
__global__ void __launch_bounds__(128) finish_token_sums_kernel(TokenSums a) {
  const int64_t column = int64_t(blockIdx.x) * 128 + threadIdx.x, k = blockIdx.y;
  if (column >= a.dim) return;
  for (int64_t n = blockIdx.z; n < a.batch; n += gridDim.z) {
    const float* part = a.partial + (n * a.chunks * a.count + k) * a.dim + column;
    float total = 0.f;
#pragma unroll 4
    for (int64_t c = 0; c < a.chunks; ++c) total += part[c * a.count * a.dim];
    void* out = k == 0 ? a.out[0] : k == 1 ? a.out[1] : a.out[2];
    static_cast<T*>(out)[n * a.dim + column] = from_float<T>(total);
  }
}

int finish_token_sums_cuda(const TokenSums& a, void* stream) {
  if (a.batch * a.dim == 0) return cudaSuccess;
  const dim3 grid(unsigned((a.dim + 127) / 128), unsigned(a.count), unsigned(a.batch < 65535 ? a.batch : 65535));
  return dispatch_cuda(a.dtype, [&](auto* element) {
    using T = std::remove_pointer_t<decltype(element)>;
    return launch(finish_token_sums_kernel<T>, grid, dim3(128), 0, static_cast<cudaStream_t>(stream), a);
  });
}

int64_t cuda_chunk_tokens(int64_t batch, int64_t tokens) {
  const int64_t blocks = tuning(compute_capability()).blocks;
  const int64_t even = (batch * tokens + blocks - 1) / blocks;  // tokens a block, were they spread evenly
  return std::clamp<int64_t>((even + 7) / 8 * 8, 8, 64);
}

const char* cuda_error_string(int error) { return error_string(static_cast<cudaError_t>(error)); }

}  // namespace dit
