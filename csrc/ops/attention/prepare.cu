// SPDX-License-Identifier: Apache-2.0
// Launches the CUDA kernels of the pass before attention.
#include "ops/attention/prepare.cuh"

#include "common/cuda/dispatch.h"

namespace dit {

namespace {

bool fits(int64_t dim) { return dim % 8 == 0 && dim <= kPrepareWidth; }

}  // namespace

int prepare_cuda(const Prepare& a, void* stream) {
  if (!fits(a.dim)) return cudaErrorInvalidValue;
  const auto blocks = [&](int64_t tokens) {
    return unsigned((a.batch * tokens * a.heads + kPrepareRows - 1) / kPrepareRows);
  };
  return dispatch_half_cuda(a.dtype, [&](auto* element) {
    using T = std::remove_pointer_t<decltype(element)>;
    return launch(prepare_kernel<T>, dim3(blocks(a.queries) + blocks(a.keys)), dim3(kPrepareLanes, kPrepareRows), 0,
                  static_cast<cudaStream_t>(stream), a, blocks(a.queries));
  });
}

int prepare_backward_cuda(const PrepareBackward& a, void* stream) {
  if (!fits(a.dim)) return cudaErrorInvalidValue;
  return dispatch_half_cuda(a.dtype, [&](auto* element) {
    using T = std::remove_pointer_t<decltype(element)>;
    return launch(prepare_backward_kernel<T>, dim3(unsigned(a.chunks())), dim3(kPrepareLanes, kPrepareRows), 0,
                  static_cast<cudaStream_t>(stream), a, unsigned(a.query_chunks()));
  });
}

}  // namespace dit
