// SPDX-License-Identifier: Apache-2.0
// Launches adamw_ema's CUDA kernel.
#include "ops/adamw_ema/adamw_ema.cuh"

#include "common/cuda/dispatch.h"
#include "common/cuda/launch.h"

namespace dit {
namespace {

template <class P, class G, class C>
cudaError_t launch_for(const AdamwEma& a, void* stream) {
  return launch(adamw_ema_kernel<P, G, C>, dim3(unsigned(a.end_block[a.count - 1])), dim3(kAdamwEmaThreads), 0,
                static_cast<cudaStream_t>(stream), a);
}

}  // namespace

int adamw_ema_cuda(const AdamwEma& a, void* stream) {
  const bool as_copy = a.grad_dtype == a.copy_dtype;  // else float32
  return dispatch_cuda(a.copy_dtype, [&](auto* element) {
    using C = std::remove_pointer_t<decltype(element)>;
    if (a.param_dtype == Dtype::f32)
      return as_copy ? launch_for<float, C, C>(a, stream) : launch_for<float, float, C>(a, stream);
    return as_copy ? launch_for<C, C, C>(a, stream) : launch_for<C, float, C>(a, stream);
  });
}

}  // namespace dit
