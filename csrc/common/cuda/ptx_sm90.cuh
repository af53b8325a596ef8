// SPDX-License-Identifier: Apache-2.0
// Instructions of Hopper: mbarriers and tiled TMA loads (sm_90 and later), wgmma (sm_90a only). What the same functions
// do on a CPU is in host_exec/ptx_sm90_on_cpu.h. Compiled for a GPU that lacks an instruction, its function traps, so
// that one source serves every architecture; has_tma and has_wgmma tell.
//
// Tiles in shared memory hold elements of T (__nv_bfloat16 or __half) in one of two layouts:
//   swizzled   rows of 64 elements, 128 bytes, after each other, the 16-byte chunk c of row r at chunk c ^ (r % 8);
//              starts at a multiple of 1024 bytes
//   plain      rows of 8 elements, 16 bytes, after each other; starts at a multiple of 128 bytes
#pragma once
#include "common/cuda/ptx.cuh"

namespace dit {

constexpr int kSwizzleRowElements = 64;
constexpr int kSwizzleAtomBytes = 1024;  // 8 rows of 128 bytes
constexpr int kPlainRowElements = 8;
constexpr int kPlainAtomBytes = 128;  // 8 rows of 16 bytes

// The descriptor (see wgmma_descriptor) of what lies `bytes` further on in the same tile: one addition, where a new one
// takes several instructions for each product.
DIT_DEVICE uint64_t wgmma_advance(uint64_t descriptor, uint32_t bytes) {
  return descriptor >> 32 << 32 | uint32_t(uint32_t(descriptor) + (bytes >> 4));
}

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

// Describes an array to TMA. A kernel takes it as `const __grid_constant__ TensorMap`.
using TensorMap = CUtensorMap;

// An array of T of `kRank` dimensions, the first dense, those behind it `strides` bytes apart (multiples of 16, below
// 2^40), read in boxes. box[0] is 64 columns (swizzled) or 8 (plain); at most 256 in each dimension. Elements outside
// the array read as zero.
template <class T, int kRank>
cudaError_t make_tensor_map(TensorMap* map, const void* base, const int64_t (&sizes)[kRank],
                            const int64_t (&strides)[kRank - 1], const int (&box)[kRank]) {
  static_assert(is_half_type<T>);
  void* entry = nullptr;
  cudaDriverEntryPointQueryResult found;
  const cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000,
                                                             cudaEnableDefault, &found);
  if (error != cudaSuccess) return error;
  if (found != cudaDriverEntryPointSuccess) return cudaErrorNotSupported;
  cuuint64_t its_sizes[kRank], its_strides[kRank];
  cuuint32_t its_box[kRank], steps[kRank];
  for (int i = 0; i < kRank; ++i) {
    its_sizes[i] = cuuint64_t(sizes[i]), its_box[i] = cuuint32_t(box[i]), steps[i] = 1;
    if (i > 0) its_strides[i - 1] = cuuint64_t(strides[i - 1]);
  }
  if (box[0] != kSwizzleRowElements && box[0] != kPlainRowElements) return cudaErrorInvalidValue;
  const auto swizzle = box[0] == kPlainRowElements ? CU_TENSOR_MAP_SWIZZLE_NONE : CU_TENSOR_MAP_SWIZZLE_128B;
  const auto type = std::is_same_v<T, __half> ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
  const CUresult result = reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(entry)(
      map, type, kRank, const_cast<void*>(base), its_sizes, its_strides, its_box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
      swizzle, CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
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
// those outside the matrix too. `column` is a multiple of 8, negative or not: others are an illegal instruction, though
// the PTX ISA does not say so (seen on an H200). Below, of a box of an array of rank 4, the coordinates in its order.
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

DIT_DEVICE void tma_load(void* tile, const TensorMap* map, uint64_t* barrier, int i0, int i1, int i2, int i3) {
  if constexpr (has_tma) {
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
        "[%0], [%1, {%3, %4, %5, %6}], [%2];"
        :
        : "r"(smem_address(tile)), "l"(map), "r"(smem_address(barrier)), "r"(i0), "r"(i1), "r"(i2), "r"(i3)
        : "memory");
  } else {
    __trap();
  }
}

// Shows what this thread has written to shared memory to wgmma, which reads it by another way; then comes a barrier.
DIT_DEVICE void fence_proxy_async() {
  if constexpr (has_tma) {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  } else {
    __trap();
  }
}

// Registers that each thread of this warpgroup may use from here on, a multiple of 8. All its warps call it.
template <int kRegisters>
DIT_DEVICE void setmaxnreg_more() {
  if constexpr (has_wgmma) {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
  } else {
    __trap();
  }
}
template <int kRegisters>
DIT_DEVICE void setmaxnreg_fewer() {
  if constexpr (has_wgmma) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
  } else {
    __trap();
  }
}

// Operands of wgmma: 64 or N rows along k ("k-major"), or transposed: 16 rows along m or n.
//   swizzled   to go 16 elements along k: pass the address of element (0, 16); transposed, of row 16
//   plain      k-major: the second 8 of the 16 columns lie leading_bytes behind the first, each 8 rows stride_bytes
//              behind the last 8. Transposed, 8 wide: each 8 rows leading_bytes behind the last 8
DIT_DEVICE uint64_t wgmma_descriptor(const void* tile) {
  constexpr uint64_t kLeadingBytes = 16, kStrideBytes = kSwizzleAtomBytes, kSwizzle128 = 1;  // leading: not used here
  return uint64_t(smem_address(tile) & 0x3ffff) >> 4 | kLeadingBytes >> 4 << 16 | kStrideBytes >> 4 << 32 |
         kSwizzle128 << 62;
}
DIT_DEVICE uint64_t wgmma_descriptor_plain(const void* tile, uint32_t leading_bytes, uint32_t stride_bytes) {
  return uint64_t(smem_address(tile) & 0x3ffff) >> 4 | uint64_t(leading_bytes >> 4) << 16 |
         uint64_t(stride_bytes >> 4) << 32;
}
// Registers of wgmma may be touched only before the fence or after the wait, and the compiler must not move it: call
// this on accumulators and register operands on that side.
template <class R, int kCount>
DIT_DEVICE void wgmma_pin(R (&registers)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    if constexpr (std::is_same_v<R, float>)
      asm volatile("" : "+f"(registers[i])::"memory");
    else
      asm volatile("" : "+r"(registers[i])::"memory");
  }
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
// Waits until at most `Groups` committed groups are under way. Until then accumulators and tiles belong to them.
template <int Groups>
DIT_DEVICE void wgmma_wait() {
  if constexpr (has_wgmma) {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(Groups) : "memory");
  } else {
    __trap();
  }
}

// The registers of d for N = 64 and N = 8 in wgmma's text, and in the list of operands.
#define DIT_WGMMA_D64 \
  "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, " \
  "%19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}"
#define DIT_WGMMA_D8 "{%0, %1, %2, %3}"
#define DIT_WGMMA_OUT64 \
  "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), \
  "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), \
  "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), \
  "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])
#define DIT_WGMMA_OUT8 "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
// a, b, accumulate and transposes are what the operands behind d are called; the rest is their list.
#define DIT_WGMMA(n, types, d, a, b, accumulate, transposes, ...)                                             \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " accumulate ", 0;\nwgmma.mma_async.sync.aligned.m64n" n      \
               "k16.f32." types " " d ", " a ", " b ", p, 1, 1, " transposes ";\n}"                            \
               : __VA_ARGS__)
#define DIT_WGMMA_SHARED(types)                                                                               \
  if constexpr (N == 64)                                                                                      \
    DIT_WGMMA("64", types, DIT_WGMMA_D64, "%32", "%33", "%34", "%35, %36", DIT_WGMMA_OUT64                    \
              : "l"(a), "l"(b), "r"(int(accumulate)), "n"(int(kATransposed)), "n"(int(kBTransposed)));        \
  else                                                                                                        \
    DIT_WGMMA("8", types, DIT_WGMMA_D8, "%4", "%5", "%6", "%7, %8", DIT_WGMMA_OUT8                            \
              : "l"(a), "l"(b), "r"(int(accumulate)), "n"(int(kATransposed)), "n"(int(kBTransposed)))
#define DIT_WGMMA_REGISTERS(types)                                                                            \
  if constexpr (N == 64)                                                                                      \
    DIT_WGMMA("64", types, DIT_WGMMA_D64, "{%32, %33, %34, %35}", "%36", "%37", "%38", DIT_WGMMA_OUT64        \
              : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(int(accumulate)), "n"(int(kBTransposed))); \
  else                                                                                                        \
    DIT_WGMMA("8", types, DIT_WGMMA_D8, "{%4, %5, %6, %7}", "%8", "%9", "%10", DIT_WGMMA_OUT8                 \
              : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(int(accumulate)), "n"(int(kBTransposed)))

// d[64 x N] = a[64 x 16] b[N x 16]^T + (accumulate ? d : 0), by the 128 threads of a warpgroup, asynchronously. A
// thread's d[4j + e] is row 16 (warp % 4) + g + 8 (e / 2), column 8j + 2t + e % 2. N is 64 or 8.
template <class T, int N, bool kATransposed = false, bool kBTransposed = false>
DIT_DEVICE void wgmma_m64k16(float (&d)[N / 2], uint64_t a, uint64_t b, bool accumulate) {
  static_assert(is_half_type<T> && (N == 64 || N == 8));
  if constexpr (!has_wgmma) {
    __trap();
  } else if constexpr (std::is_same_v<T, __half>) {
    DIT_WGMMA_SHARED("f16.f16");
  } else {
    DIT_WGMMA_SHARED("bf16.bf16");
  }
}

// The same with a in registers: a[i] is row 16 (warp % 4) + g + 8 (i % 2), columns 2t + 8 (i / 2) and the next. They
// belong to wgmma until the wait, as d does.
template <class T, int N, bool kBTransposed = false>
DIT_DEVICE void wgmma_m64k16_registers(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b, bool accumulate) {
  static_assert(is_half_type<T> && (N == 64 || N == 8));
  if constexpr (!has_wgmma) {
    __trap();
  } else if constexpr (std::is_same_v<T, __half>) {
    DIT_WGMMA_REGISTERS("f16.f16");
  } else {
    DIT_WGMMA_REGISTERS("bf16.bf16");
  }
}
#undef DIT_WGMMA_REGISTERS
#undef DIT_WGMMA_SHARED
#undef DIT_WGMMA
#undef DIT_WGMMA_OUT8
#undef DIT_WGMMA_OUT64
#undef DIT_WGMMA_D8
#undef DIT_WGMMA_D64

}  // namespace dit

#else
#include "host_exec/ptx_sm90_on_cpu.h"
#endif
