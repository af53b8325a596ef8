// SPDX-License-Identifier: Apache-2.0
// Launching a kernel, on a GPU and on host_exec alike. Nothing here allocates or synchronises, so all of it may run
// while a CUDA graph is captured.
#pragma once
#include "common/cuda/platform.h"

#if defined(__CUDACC__)
#include <atomic>

namespace dit {

// Static and dynamic shared memory of more than 48 KB together must be asked for; a kernel has at most 16 KB of the
// former where it uses the latter.
constexpr size_t kDefaultDynamicSmem = 32 << 10;

// kernel<<<grid, block, dynamic_smem_bytes, stream>>>(args...), with at least one block.
template <class... P, class... A>
cudaError_t launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t dynamic_smem_bytes, cudaStream_t stream,
                   A&&... args) {
  if (dynamic_smem_bytes > kDefaultDynamicSmem) {
    const cudaError_t error = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                                   cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                   static_cast<int>(dynamic_smem_bytes));
    if (error != cudaSuccess) return error;
  }
  kernel<<<grid, block, dynamic_smem_bytes, stream>>>(static_cast<P>(args)...);
  return cudaGetLastError();
}

inline const char* error_string(cudaError_t error) { return cudaGetErrorString(error); }

// Dynamic shared memory, aligned for a 128-byte-swizzled tile.
template <class T>
DIT_DEVICE T* dynamic_smem() {
  extern __shared__ __align__(1024) unsigned char dit_dynamic_smem[];
  return reinterpret_cast<T*>(dit_dynamic_smem);
}

// Of the current device: 80, 90, 100, ... ; 0 if CUDA cannot tell.
inline int compute_capability() {
  constexpr int kDevices = 64;
  static std::atomic<int> known[kDevices];
  int device = 0, major = 0, minor = 0;
  if (cudaGetDevice(&device) != cudaSuccess) return 0;
  if (device < kDevices && known[device] > 0) return known[device];
  if (cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) != cudaSuccess ||
      cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) != cudaSuccess)
    return 0;
  if (device < kDevices) known[device] = 10 * major + minor;
  return 10 * major + minor;
}

// Of the current device; 1 if CUDA cannot tell.
inline int multiprocessors() {
  int device = 0, count = 0;
  if (cudaGetDevice(&device) != cudaSuccess) return 1;
  return cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device) == cudaSuccess ? count : 1;
}

}  // namespace dit
#else
#include "host_exec/launch_on_cpu.h"
#endif
