// SPDX-License-Identifier: Apache-2.0
// From a dtype known at run time to an element type of CUDA.
#pragma once
#include "common/cuda/platform.h"
#include "common/dtype.h"

namespace dit {

// Calls f with a null pointer of the element type, so that a generic lambda can name it.
template <class F>
cudaError_t dispatch_cuda(Dtype dtype, F&& f) {
  switch (dtype) {
    case Dtype::f32: return f(static_cast<float*>(nullptr));
    case Dtype::bf16: return f(static_cast<__nv_bfloat16*>(nullptr));
    case Dtype::f16: return f(static_cast<__half*>(nullptr));
  }
  return cudaErrorInvalidValue;
}

// The same for kernels on the tensor cores' 16-bit types.
template <class F>
cudaError_t dispatch_half_cuda(Dtype dtype, F&& f) {
  switch (dtype) {
    case Dtype::bf16: return f(static_cast<__nv_bfloat16*>(nullptr));
    case Dtype::f16: return f(static_cast<__half*>(nullptr));
    case Dtype::f32: break;
  }
  return cudaErrorInvalidValue;
}

}  // namespace dit
