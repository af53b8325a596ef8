// SPDX-License-Identifier: Apache-2.0
// Two kernels with bugs on request, which show what host_exec and the sanitizers notice. No CUDA words here.
#pragma once
#include <cstdint>
#include <utility>
#include <vector>

namespace host_exec::selftest {

enum class Bug {
  none,
  // of row_sums
  missing_barrier_before_use,
  missing_barrier_before_reuse,
  wait_off_by_one,
  dynamic_shared_overrun,
  static_shared_overrun,
  global_read_overrun,
  global_write_overrun,
  divergent_shuffle,
  divergent_barrier,
  uninitialised_static_shared,
  // of gemm
  wrong_phase,
  early_release,
  too_few_bytes_expected,
  too_many_bytes_expected,
  missing_empty_wait,
  accumulator_read_early,
};

constexpr std::pair<Bug, const char*> kBugs[] = {
    {Bug::none, "none"},
    {Bug::missing_barrier_before_use, "missing_barrier_before_use"},
    {Bug::missing_barrier_before_reuse, "missing_barrier_before_reuse"},
    {Bug::wait_off_by_one, "wait_off_by_one"},
    {Bug::dynamic_shared_overrun, "dynamic_shared_overrun"},
    {Bug::static_shared_overrun, "static_shared_overrun"},
    {Bug::global_read_overrun, "global_read_overrun"},
    {Bug::global_write_overrun, "global_write_overrun"},
    {Bug::divergent_shuffle, "divergent_shuffle"},
    {Bug::divergent_barrier, "divergent_barrier"},
    {Bug::uninitialised_static_shared, "uninitialised_static_shared"},
    {Bug::wrong_phase, "wrong_phase"},
    {Bug::early_release, "early_release"},
    {Bug::too_few_bytes_expected, "too_few_bytes_expected"},
    {Bug::too_many_bytes_expected, "too_many_bytes_expected"},
    {Bug::missing_empty_wait, "missing_empty_wait"},
    {Bug::accumulator_read_early, "accumulator_read_early"},
};

// Both throw the launch's error. Buffers are copied to exactly as many bytes as the kernel may touch.
// The sum of each row of x (rows, columns), columns a multiple of 4.
std::vector<float> row_sums(Bug bug, const float* x, int64_t rows, int64_t columns);
// a (m, k) times b (n, k) transposed, rounded to bfloat16 first; k a multiple of 8.
std::vector<float> gemm(Bug bug, const float* a, const float* b, int64_t m, int64_t n, int64_t k);

}  // namespace host_exec::selftest
