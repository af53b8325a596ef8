// SPDX-License-Identifier: Apache-2.0
// common/cuda/launch.h on a CPU: a launch runs the grid before it returns, block after block. What a thread throws
// (deadlock, divergence, a misaligned address) ends the launch with cudaErrorLaunchFailure and becomes error_string's
// message, per calling thread.
#pragma once
#include <tuple>

#include "common/cuda/platform.h"
#include "host_exec/settings.h"

namespace host_exec {

cudaError_t launch(dim3 grid, dim3 block, size_t dynamic_bytes, const Body& body);

}  // namespace host_exec

namespace dit {

template <class... P, class... A>
cudaError_t launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t dynamic_smem_bytes, cudaStream_t, A&&... args) {
  struct Call {
    void (*kernel)(P...);
    std::tuple<P...> parameters;
  } const call{kernel, std::tuple<P...>(static_cast<P>(args)...)};
  const auto run = [](const void* p) {
    const Call& c = *static_cast<const Call*>(p);
    std::apply(c.kernel, c.parameters);
  };
  return host_exec::launch(grid, block, dynamic_smem_bytes, host_exec::Body{run, &call});
}

inline const char* error_string(cudaError_t error) {
  return error == cudaSuccess ? "no error" : host_exec::last_message();
}

template <class T>
DIT_DEVICE T* dynamic_smem() {
  return reinterpret_cast<T*>(host_exec::Block::current().dynamic);
}

inline int compute_capability() { return host_exec::settings.compute_capability; }
inline int multiprocessors() { return host_exec::settings.multiprocessors; }

}  // namespace dit
