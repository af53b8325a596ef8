// SPDX-License-Identifier: Apache-2.0
// Launches gated_residual_adaln's CUDA kernels.
#include "ops/gated_residual_adaln/gated_residual_adaln.cuh"

#include "common/token_sums.h"

namespace dit {

int gated_residual_adaln_forward_cuda(const GatedResidualAdalnForward& a, void* stream) {
  if (a.batch * a.tokens == 0) return cudaSuccess;
  const int64_t chunk = cuda_chunk_tokens(a.batch, a.tokens), chunks = (a.tokens + chunk - 1) / chunk;
  return dispatch_rows(a.dtype, a.dim, [&](auto rows) {
    using R = decltype(rows);
    return launch(gated_residual_adaln_forward_kernel<R, R::kDim == 0 ? 1 : 4>, dim3(unsigned(a.batch * chunks)), R::block(a.dim), 0,
                  static_cast<cudaStream_t>(stream), a, chunk, chunks);
  });
}

int gated_residual_adaln_backward_cuda(const GatedResidualAdalnBackward& a, void* stream) {
  if (a.batch * a.tokens == 0) return cudaSuccess;
  return dispatch_rows(a.dtype, a.dim, [&](auto rows) {
    using R = decltype(rows);
    return launch(gated_residual_adaln_backward_kernel<R, R::kDim == 0 ? 1 : 2>, dim3(unsigned(a.batch * a.chunks)), R::block(a.dim), 0,
                  static_cast<cudaStream_t>(stream), a);
  });
}

}  // namespace dit
