// SPDX-License-Identifier: Apache-2.0
// From a dtype and head width known at run time to those that attention's CUDA kernels are made for.
#pragma once
#include <type_traits>

#include "common/cuda/dispatch.h"

namespace dit {

// Calls f(element, width) with a null pointer of the element type and the head width as a constant.
template <class F>
cudaError_t dispatch_heads(Dtype dtype, int64_t dim, F&& f) {
  return dispatch_half_cuda(dtype, [&](auto* element) -> cudaError_t {
    if (dim == 64) return f(element, std::integral_constant<int, 64>());
    if (dim == 72) return f(element, std::integral_constant<int, 72>());
    return cudaErrorInvalidValue;
  });
}

}  // namespace dit
