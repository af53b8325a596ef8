// SPDX-License-Identifier: Apache-2.0
#include "host_exec/selftest.h"

#include <stdexcept>

#include "common/cuda/launch.h"
#include "common/cuda/platform.h"

namespace host_exec::selftest {
namespace {

constexpr int kThreads = 96;

void check(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(dit::error_string(error));
}

// One block a row: through dynamic shared memory, warp shuffles and static shared memory.
__global__ void __launch_bounds__(kThreads) row_sums_kernel(const float* __restrict__ x, float* __restrict__ out,
                                                            int columns) {
  __shared__ float warp_sums[kThreads / 32];
  float* row = dit::dynamic_smem<float>();
  for (int i = threadIdx.x; i < columns; i += kThreads) row[i] = x[int64_t(blockIdx.x) * columns + i];
  __syncthreads();
  float sum = 0.f;
  for (int i = threadIdx.x; i < columns; i += kThreads) sum += row[columns - 1 - i];
  for (int bits = 16; bits; bits /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, bits);
  if (threadIdx.x % 32 == 0) warp_sums[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int w = 1; w < kThreads / 32; ++w) sum += warp_sums[w];
    out[blockIdx.x] = sum;
  }
}

}  // namespace

void row_sums(const float* x, float* out, int64_t rows, int64_t columns) {
  check(dit::launch(row_sums_kernel, dim3(unsigned(rows)), dim3(kThreads), size_t(columns) * sizeof(float), nullptr, x,
                    out, int(columns)));
}

}  // namespace host_exec::selftest
