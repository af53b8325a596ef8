// SPDX-License-Identifier: Apache-2.0
// Everything a kernel's source needs to compile with a C++17 host compiler and to run on a CPU, for tests only.
//
//   language.h     __global__, __shared__ and the vector and half types, from CUDA's own headers
//   builtins.h     threadIdx, __syncthreads, shuffles, ballots, atomics, arithmetic
//   collectives.h  how the lanes of a warp meet
//   scheduler.h    a fiber per CUDA thread, the block barrier, asynchronous work, deadlocks
//   context.h      how a fiber is switched
//   sanitizers.h   what AddressSanitizer and ThreadSanitizer are told about fibers
//   settings.h     the order of threads, the compute capability pretended
// The instructions that kernels reach through common/cuda/ptx.cuh are in ptx_on_cpu.h and ptx_sm90_on_cpu.h.
//
// What is not modelled: the memory model between blocks (blocks run one after the other), clusters, cache hints, speed.
#pragma once
#if defined(__CUDACC__)
#error "cuda_on_cpu.h is for host compilers"
#endif
#include "host_exec/builtins.h"
#include "host_exec/language.h"
