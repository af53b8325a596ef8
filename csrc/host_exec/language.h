// SPDX-License-Identifier: Apache-2.0
// The words of CUDA C++ that a host compiler does not know.
//
// Shared memory is static: one block runs at a time in the whole process, and AddressSanitizer puts red zones around
// static variables of functions that are static themselves, as kernels are here. Dynamic shared memory comes through
// dit::dynamic_smem only.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <driver_types.h>
#include <vector_functions.h>
#include <vector_types.h>

// In place of the attributes that CUDA's headers make of these words.
#undef __global__
#undef __device__
#undef __host__
#undef __constant__
#undef __shared__
#undef __launch_bounds__
#undef __grid_constant__
#undef __forceinline__
#define __global__ static
#define __device__
#define __host__
#define __constant__ static const
#define __shared__ static
#define __launch_bounds__(...)
#define __grid_constant__
#define __forceinline__ inline
