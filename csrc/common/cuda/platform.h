// SPDX-License-Identifier: Apache-2.0
// The first include of every kernel: CUDA under nvcc, csrc/host_exec under a host compiler.
#pragma once
#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#define DIT_DEVICE __device__ __forceinline__
#else
#include "host_exec/cuda_on_cpu.h"
#define DIT_DEVICE inline
#endif
