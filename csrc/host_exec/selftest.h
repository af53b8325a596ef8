// SPDX-License-Identifier: Apache-2.0
// Small kernels that show what host_exec does; selftest.cu says what each computes. No CUDA words here.
#pragma once
#include <cstdint>
#include <string>

namespace host_exec::selftest {

// out[r] = sum of x[r, :]. Throws the launch's error.
void row_sums(const float* x, float* out, int64_t rows, int64_t columns);

}  // namespace host_exec::selftest
