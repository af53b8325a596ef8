// SPDX-License-Identifier: Apache-2.0
// Launches adaln's CUDA kernels.
#include "ops/adaln/adaln.cuh"

#include "common/token_sums.h"

namespace dit {

int adaln_forward_cuda(const AdalnForward& a, void* stream) {
  if (a.batch * a.tokens == 0) return cudaSuccess;
  const int64_t chunk = cuda_chunk_tokens(a.batch, a.tokens), chunks = (a.tokens + chunk - 1) / chunk;
  return dispatch_rows(a.dtype, a.dim, [&](auto rows) {
    using R = decltype(rows);
    return launch(adaln_forward_kernel<R, R::kDim == 0 ? 1 : 4>, dim3(unsigned(a.batch * chunks)), R::block(a.dim), 0,
                  static_cast<cudaStream_t>(stream), a, chunk, chunks);
  });
}

int adaln_backward_cuda(const AdalnBackward& a, void* stream) {
  if (a.batch * a.tokens == 0) return cudaSuccess;
  return dispatch_rows(a.dtype, a.dim, [&](auto rows) {
    using R = decltype(rows);
    return launch(adaln_backward_kernel<R, R::kDim == 0 ? 1 : 2>, dim3(unsigned(a.batch * a.chunks)), R::block(a.dim), 0,
                  static_cast<cudaStream_t>(stream), a);
  });
}

}  // namespace dit
