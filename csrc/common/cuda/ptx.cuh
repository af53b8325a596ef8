// SPDX-License-Identifier: Apache-2.0
// Instructions of sm_80 and later that C++ has no words for: mma, ldmatrix, cp.async, ex2. PTX here; what the same
// functions do on a CPU is in host_exec/ptx_on_cpu.h, and tests/host_exec/test_ptx.py states what each computes.
//
// T is __nv_bfloat16 or __half. A 32-bit register holds two of them, the one of the lower index in the lower half.
// g = lane / 4 and t = lane % 4 below.
#pragma once
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "common/cuda/platform.h"

namespace dit {

template <class T>
constexpr bool is_half_type = std::is_same_v<T, __nv_bfloat16> || std::is_same_v<T, __half>;

// Two floats rounded to nearest even into one register.
template <class T>
DIT_DEVICE uint32_t pack(float low, float high) {
  static_assert(is_half_type<T>);
  uint32_t bits;
  if constexpr (std::is_same_v<T, __half>) {
    const __half2 v = __floats2half2_rn(low, high);
    memcpy(&bits, &v, sizeof(bits));
  } else {
    const __nv_bfloat162 v = __floats2bfloat162_rn(low, high);
    memcpy(&bits, &v, sizeof(bits));
  }
  return bits;
}

}  // namespace dit

#if defined(__CUDACC__)

namespace dit {

// The 32-bit address that PTX's shared memory instructions take.
DIT_DEVICE uint32_t smem_address(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

// 2^x within 2 units of the last place; 0 where that would be subnormal. One instruction: exp2f takes four.
DIT_DEVICE float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// d[16x8] += a[16x16] b[16x8], float32 accumulators. Fragments:
//   d[i]  row g + 8 (i / 2), column 2t + i % 2
//   a[i]  row g + 8 (i % 2), columns 2t + 8 (i / 2) and the next
//   b_i   rows 2t + 8 i and the next, column g
template <class T>
DIT_DEVICE void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  static_assert(is_half_type<T>);
  if constexpr (std::is_same_v<T, __half>) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
}

// d[16x8] += a[16x8] b[8x8]: the first two registers of a and the first of b above.
template <class T>
DIT_DEVICE void mma_m16n8k8(float (&d)[4], const uint32_t (&a)[2], uint32_t b) {
  static_assert(is_half_type<T>);
  if constexpr (std::is_same_v<T, __half>) {
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(b));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(b));
  }
}

// Loads 8x8 matrices of 16-bit elements from shared memory. Lane 8i + j gives the address, a multiple of 16, of row j
// of matrix i; each lane receives of every matrix the elements 2t and 2t + 1 of row g, with _trans those of column g.
DIT_DEVICE void ldmatrix_x1(uint32_t& r, const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];" : "=r"(r) : "r"(smem_address(row)) : "memory");
}
DIT_DEVICE void ldmatrix_x1_trans(uint32_t& r, const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];"
               : "=r"(r)
               : "r"(smem_address(row))
               : "memory");
}
DIT_DEVICE void ldmatrix_x2(uint32_t (&r)[2], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(smem_address(row))
               : "memory");
}
DIT_DEVICE void ldmatrix_x2_trans(uint32_t (&r)[2], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(smem_address(row))
               : "memory");
}
DIT_DEVICE void ldmatrix_x4(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(smem_address(row))
               : "memory");
}
DIT_DEVICE void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(smem_address(row))
               : "memory");
}

// Starts a copy of 16 bytes from global to shared memory, both aligned to 16. Without `pred` the source is not read and
// the destination becomes zero.
DIT_DEVICE void cp_async16(void* smem, const void* gmem, bool pred) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
               :
               : "r"(smem_address(smem)), "l"(gmem), "r"(pred ? 16 : 0)
               : "memory");
}
// Closes the group of copies this thread has started since the last commit.
DIT_DEVICE void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most N of this thread's groups are under way. Other threads see the copies after a barrier.
template <int N>
DIT_DEVICE void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

}  // namespace dit

#else
#include "host_exec/ptx_on_cpu.h"
#endif
