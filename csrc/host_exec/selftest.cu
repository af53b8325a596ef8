// SPDX-License-Identifier: Apache-2.0
#include "host_exec/selftest.h"

#include <stdexcept>

#include "common/cuda/launch.h"
#include "common/cuda/platform.h"
#include "common/cuda/ptx_sm90.cuh"

namespace host_exec::selftest {
namespace {

void check(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(dit::error_string(error));
}

// Calls run<bug>() with the bug as a template argument.
template <class Run, size_t... I>
void with_bug(Bug bug, Run&& run, std::index_sequence<I...>) {
  (void)((kBugs[I].first == bug && (run(std::integral_constant<Bug, kBugs[I].first>{}), true)) || ...);
}

// ---- row_sums: cp.async in two stages, then a block reduction

constexpr int kThreads = 64;
constexpr int kWarps = kThreads / 32;
constexpr int kChunk = 4 * kThreads;  // elements of a stage, 16 bytes a thread
constexpr int kStages = 2;

// out[r] = sum of x[r, :]; one block a row. Each thread sums elements that others have copied.
template <Bug bug>
__global__ void __launch_bounds__(kThreads) row_sums_kernel(const float* __restrict__ x, float* __restrict__ out,
                                                            int columns) {
  __shared__ float warp_sums[kWarps];
  float* stages = dit::dynamic_smem<float>();
  const float* row = x + int64_t(blockIdx.x) * columns;
  const int chunks = (columns + kChunk - 1) / kChunk;
  const auto prefetch = [&](int chunk) {
    const int column = chunk * kChunk + 4 * threadIdx.x;
    const bool inside = column < columns || (bug == Bug::global_read_overrun && chunk < chunks);
    dit::cp_async16(stages + chunk % kStages * kChunk + 4 * threadIdx.x, inside ? row + column : row, inside);
    dit::cp_async_commit();
  };
  for (int chunk = 0; chunk < kStages; ++chunk) prefetch(chunk);
  float sum = 0.f;
  for (int chunk = 0; chunk < chunks; ++chunk) {
    dit::cp_async_wait<bug == Bug::wait_off_by_one ? kStages : kStages - 1>();
    if (bug != Bug::missing_barrier_before_use) __syncthreads();
    const float* stage = stages + chunk % kStages * kChunk;
    for (int i = 0; i < 4; ++i) sum += stage[kChunk - 1 - threadIdx.x - i * kThreads];
    if (bug != Bug::missing_barrier_before_reuse) __syncthreads();
    prefetch(chunk + kStages);
  }
  dit::cp_async_wait<0>();
  for (int bits = 16; bits; bits /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, bits);
  if (bug == Bug::divergent_shuffle) {
    if (threadIdx.x % 32 < 7) {
      __shfl_xor_sync(0xffffffffu, sum, 1);
    } else {
      __syncwarp();
    }
  }
  if (bug == Bug::divergent_barrier) {
    if (threadIdx.x < 32) {
      __syncthreads();
    } else {
      __syncthreads();
    }
  }
  const int warp = threadIdx.x / 32;
  if (threadIdx.x % 32 == 0 && (bug != Bug::uninitialised_static_shared || warp == 0))
    warp_sums[bug == Bug::static_shared_overrun ? warp + 1 : warp] = sum;
  __syncthreads();
  if (threadIdx.x < (bug == Bug::global_write_overrun ? 2 : 1)) {
    sum = 0.f;
    for (int w = 0; w < kWarps; ++w) sum += warp_sums[w];
    out[blockIdx.x + threadIdx.x] = sum;
  }
}

// ---- gemm: a producer warp and a consumer warpgroup, TMA, mbarriers, wgmma

constexpr int kTile = 64;
constexpr int kTileBytes = kTile * 128;
constexpr int kConsumers = 128;

// c[m, n] = sum over k of a[m, k] b[n, k]; one block a 64 x 64 tile, k in steps of 64 through a ring of two stages.
// full[s]: the tiles of stage s have come. empty[s]: all consumers are done with them.
template <Bug bug>
__global__ void __launch_bounds__(kConsumers + 32)
    gemm_kernel(const __grid_constant__ dit::TensorMap a_map, const __grid_constant__ dit::TensorMap b_map,
                float* __restrict__ c, int m, int n, int k) {
  auto* a = dit::dynamic_smem<unsigned char>();
  auto* b = a + kStages * kTileBytes;
  auto* full = reinterpret_cast<uint64_t*>(b + kStages * kTileBytes);
  auto* empty = full + kStages;
  if (threadIdx.x == 0) {
    for (int s = 0; s < kStages; ++s) {
      dit::mbarrier_init(full + s, 1);
      dit::mbarrier_init(empty + s, kConsumers);
    }
    dit::mbarrier_init_fence();
  }
  __syncthreads();
  const int row = blockIdx.x * kTile, column = blockIdx.y * kTile, steps = (k + kTile - 1) / kTile;
  if (threadIdx.x >= kConsumers) {
    if (threadIdx.x > kConsumers) return;
    constexpr int kBytes = bug == Bug::too_few_bytes_expected    ? kTileBytes
                           : bug == Bug::too_many_bytes_expected ? 3 * kTileBytes
                                                                 : 2 * kTileBytes;
    for (int i = 0; i < steps; ++i) {
      const int s = i % kStages;
      if (i >= kStages && bug != Bug::missing_empty_wait) dit::mbarrier_wait(empty + s, (i / kStages - 1) & 1);
      dit::mbarrier_arrive_expect_tx(full + s, kBytes);
      dit::tma_load(a + s * kTileBytes, &a_map, full + s, row, i * kTile);
      dit::tma_load(b + s * kTileBytes, &b_map, full + s, column, i * kTile);
    }
    return;
  }
  float d[32];
  for (int i = 0; i < steps; ++i) {
    const int s = i % kStages;
    dit::mbarrier_wait(full + s, (i / kStages + (bug == Bug::wrong_phase)) & 1);
    dit::wgmma_fence();
    for (int k16 = 0; k16 < kTile / 16; ++k16)
      dit::wgmma_m64k16<__nv_bfloat16, 64>(d, dit::wgmma_descriptor(a + s * kTileBytes + 32 * k16),
                                           dit::wgmma_descriptor(b + s * kTileBytes + 32 * k16), i + k16 > 0);
    dit::wgmma_commit();
    if (bug == Bug::early_release) dit::mbarrier_arrive(empty + s);
    if (bug != Bug::accumulator_read_early || i + 1 < steps) dit::wgmma_wait<0>();
    if (bug != Bug::early_release) dit::mbarrier_arrive(empty + s);
  }
  const int first_row = row + threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4, first_column = column + threadIdx.x % 4 * 2;
  for (int i = 0; i < 32; ++i) {
    const int at_row = first_row + i / 2 % 2 * 8, at_column = first_column + i / 4 * 8 + i % 2;
    if (at_row < m && at_column < n) c[int64_t(at_row) * n + at_column] = d[i];
  }
  if (bug == Bug::accumulator_read_early) dit::wgmma_wait<0>();
}

std::vector<__nv_bfloat16> rounded(const float* x, int64_t count) {
  std::vector<__nv_bfloat16> out;
  for (int64_t i = 0; i < count; ++i) out.push_back(__float2bfloat16(x[i]));
  out.shrink_to_fit();
  return out;
}

constexpr auto kEveryBug = std::make_index_sequence<std::size(kBugs)>();

}  // namespace

std::vector<float> row_sums(Bug bug, const float* x, int64_t rows, int64_t columns) {
  const std::vector<float> in(x, x + rows * columns);
  std::vector<float> out(size_t(rows), NAN);
  const size_t bytes = kStages * kChunk * sizeof(float) - (bug == Bug::dynamic_shared_overrun ? 16 : 0);
  with_bug(bug, [&](auto the) {
    if constexpr (the() < Bug::wrong_phase)
      check(dit::launch(row_sums_kernel<the()>, dim3(unsigned(rows)), dim3(kThreads), bytes, nullptr, in.data(),
                        out.data(), int(columns)));
  }, kEveryBug);
  return out;
}

std::vector<float> gemm(Bug bug, const float* a, const float* b, int64_t m, int64_t n, int64_t k) {
  const auto a16 = rounded(a, m * k), b16 = rounded(b, n * k);
  std::vector<float> c(size_t(m * n), NAN);
  dit::TensorMap a_map, b_map;
  check(dit::make_tensor_map<__nv_bfloat16>(&a_map, a16.data(), {k, m}, {2 * k}, {kTile, kTile}));
  check(dit::make_tensor_map<__nv_bfloat16>(&b_map, b16.data(), {k, n}, {2 * k}, {kTile, kTile}));
  const dim3 grid(unsigned((m + kTile - 1) / kTile), unsigned((n + kTile - 1) / kTile));
  const size_t bytes = 2 * kStages * (kTileBytes + sizeof(uint64_t));
  with_bug(bug, [&](auto the) {
    if constexpr (the() == Bug::none || the() >= Bug::wrong_phase)
      check(dit::launch(gemm_kernel<the()>, grid, dim3(kConsumers + 32), bytes, nullptr, a_map, b_map, c.data(), int(m),
                        int(n), int(k)));
  }, kEveryBug);
  return c;
}

}  // namespace host_exec::selftest
