// SPDX-License-Identifier: Apache-2.0
// Instructions of Hopper: mbarriers and tiled TMA loads (sm_90 and later), wgmma (sm_90a only). What the same functions
// do on a CPU is in host_exec/ptx_sm90_on_cpu.h. Compiled for a GPU that lacks an instruction, its function traps, so
// that one source serves every architecture; has_tma and has_wgmma tell.
//
// Tiles in shared memory are 128-byte swizzled: rows of 64 elements of T (__nv_bfloat16 or __half), 8 rows after each
// other, the 16-byte chunk c of row r at chunk c ^ (r % 8). They start at a multiple of 1024 bytes.
#pragma once
#include "common/cuda/ptx.cuh"

namespace dit {

constexpr int kSwizzleRowElements = 64;
constexpr int kSwizzleAtomBytes = 1024;  // 8 rows of 128 bytes

}  // namespace dit

#if defined(__CUDACC__)
#include <cuda.h>

namespace dit {

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
constexpr bool has_tma = true;
#else
constexpr bool has_tma = false;
#endif
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
constexpr bool has_wgmma = true;
#else
constexpr bool has_wgmma = false;
#endif

// Describes a matrix to TMA. A kernel takes it as `const __grid_constant__ TensorMap`.
using TensorMap = CUtensorMap;

// A row-major matrix of T whose rows lie `row_bytes` apart (a multiple of 16), read in boxes of box_rows (at most 256)
// by 64 columns. Elements outside the matrix read as zero.
template <class T>
cudaError_t make_tensor_map(TensorMap* map, const void* base, int64_t rows, int64_t columns, int64_t row_bytes,
                            int box_rows) {
  static_assert(is_half_type<T>);
  void* entry = nullptr;
  cudaDriverEntryPointQueryResult found;
  const cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000,
                                                             cudaEnableDefault, &found);
  if (error != cudaSuccess) return error;
  if (found != cudaDriverEntryPointSuccess) return cudaErrorNotSupported;
  const cuuint64_t sizes[2] = {cuuint64_t(columns), cuuint64_t(rows)}, strides[1] = {cuuint64_t(row_bytes)};
  const cuuint32_t box[2] = {kSwizzleRowElements, cuuint32_t(box_rows)}, steps[2] = {1, 1};
  const auto type = std::is_same_v<T, __half> ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
  const CUresult result = reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(entry)(
      map, type, 2, const_cast<void*>(base), sizes, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
      CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

// An mbarrier's phase ends when `arrivals` have arrived and all bytes expected have come; the next begins with the same
// count. Phases have parity 0, 1, 0, ...
DIT_DEVICE void mbarrier_init(uint64_t* barrier, int arrivals) {
  if constexpr (has_tma) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(smem_address(barrier)), "r"(arrivals) : "memory");
  } else {
    __trap();
  }
}
// Makes initialised barriers known to TMA. A __syncthreads must follow before other threads use them.
DIT_DEVICE void mbarrier_init_fence() {
  if constexpr (has_tma) {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  } else {
    __trap();
  }
}
DIT_DEVICE void mbarrier_arrive(uint64_t* barrier) {
  if constexpr (has_tma) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(smem_address(barrier)) : "memory");
  } else {
    __trap();
  }
}
// Arrives, and adds to the bytes this phase waits for.
DIT_DEVICE void mbarrier_arrive_expect_tx(uint64_t* barrier, int bytes) {
  if constexpr (has_tma) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(smem_address(barrier)), "r"(bytes)
                 : "memory");
  } else {
    __trap();
  }
}
// Waits until the phase of this parity has ended: the current one or the one before it.
DIT_DEVICE void mbarrier_wait(uint64_t* barrier, int parity) {
  if constexpr (has_tma) {
    uint32_t ended = 0;
    while (!ended)
      asm volatile(
          "{\n"
          ".reg .pred p;\n"
          "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
          "selp.u32 %0, 1, 0, p;\n"
          "}"
          : "=r"(ended)
          : "r"(smem_address(barrier)), "r"(parity)
          : "memory");
  } else {
    __trap();
  }
}

// Starts the load of the box whose first element is (row, column), by one thread; the barrier's phase counts its bytes,
// those outside the matrix too.
DIT_DEVICE void tma_load(void* tile, const TensorMap* map, uint64_t* barrier, int row, int column) {
  if constexpr (has_tma) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];"
        :
        : "r"(smem_address(tile)), "l"(map), "r"(smem_address(barrier)), "r"(column), "r"(row)
        : "memory");
  } else {
    __trap();
  }
}

// Operands of wgmma: a tile whose rows run along k. To go 16 elements along k, pass the address of element (0, 16).
DIT_DEVICE uint64_t wgmma_descriptor(const void* tile) {
  constexpr uint64_t kLeadingBytes = 16, kStrideBytes = kSwizzleAtomBytes, kSwizzle128 = 1;  // leading: not used here
  return uint64_t(smem_address(tile) & 0x3ffff) >> 4 | kLeadingBytes >> 4 << 16 | kStrideBytes >> 4 << 32 |
         kSwizzle128 << 62;
}
// Before the first wgmma of a batch: orders the accumulators' registers with it.
DIT_DEVICE void wgmma_fence() {
  if constexpr (has_wgmma) {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
  } else {
    __trap();
  }
}
DIT_DEVICE void wgmma_commit() {
  if constexpr (has_wgmma) {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
  } else {
    __trap();
  }
}
// Waits until at most `Groups` committed groups are under way. Until then the accumulators and the tiles belong to them.
template <int Groups>
DIT_DEVICE void wgmma_wait() {
  if constexpr (has_wgmma) {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(Groups) : "memory");
  } else {
    __trap();
  }
}

#define DIT_WGMMA_M64N64K16(types)                                                                              \
  asm volatile(                                                                                                 \
      "{\n"                                                                                                     \
      ".reg .pred p;\n"                                                                                         \
      "setp.ne.b32 p, %34, 0;\n"                                                                                \
      "wgmma.mma_async.sync.aligned.m64n64k16.f32." types                                                       \
      " {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, "  \
      "%22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, %32, %33, p, 1, 1, 0, 0;\n"                           \
      "}"                                                                                                       \
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]),         \
        "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]),   \
        "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]),              \
        "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]),              \
        "+f"(d[30]), "+f"(d[31])                                                                                \
      : "l"(a), "l"(b), "r"(int(accumulate)))

// d[64 x N] = a[64 x 16] b[N x 16]^T + (accumulate ? d : 0), by the 128 threads of a warpgroup, asynchronously. Thread's
// d[4j + e] is row 16 (warp % 4) + g + 8 (e / 2), column 8j + 2t + e % 2. N = 64 so far; a width more is a branch more.
template <class T, int N>
DIT_DEVICE void wgmma_m64k16(float (&d)[N / 2], uint64_t a, uint64_t b, bool accumulate) {
  static_assert(is_half_type<T> && N == 64);
  if constexpr (!has_wgmma) {
    __trap();
  } else if constexpr (std::is_same_v<T, __half>) {
    DIT_WGMMA_M64N64K16("f16.f16");
  } else {
    DIT_WGMMA_M64N64K16("bf16.bf16");
  }
}
#undef DIT_WGMMA_M64N64K16

}  // namespace dit

#else
#include "host_exec/ptx_sm90_on_cpu.h"
#endif
