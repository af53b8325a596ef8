// SPDX-License-Identifier: Apache-2.0
// The functions of common/cuda/ptx.cuh on a CPU, written from the PTX ISA.
//
// mma and ldmatrix are collectives of the whole warp. A copy by cp.async happens when its group is waited for and no
// other thread can run, as late as is legal; from its start on the destination is poisoned, as early as is legal.
#pragma once
#include <cstdint>
#include <cstring>

#include "host_exec/cuda_on_cpu.h"

namespace host_exec::ptx {

template <class T>
float to_float(uint16_t bits) {
  T v;
  std::memcpy(static_cast<void*>(&v), &bits, sizeof(v));
  return float(v);
}
template <class T>
float low(uint32_t v) {
  return to_float<T>(uint16_t(v));
}
template <class T>
float high(uint32_t v) {
  return to_float<T>(uint16_t(v >> 16));
}

inline bool aligned(const void* p, size_t bytes) { return reinterpret_cast<uintptr_t>(p) % bytes == 0; }

// What one lane brings to mma.m16n8k<K>.
template <int K>
struct Fragments {
  float d[4];
  uint32_t a[K / 4], b[K / 8];
};
struct Accumulators {
  float d[4];
};

// d += a b on the fragments of all lanes; the accumulators return in the first 16 bytes of each slot. Sums go up in k.
template <class T, int K>
void multiply_accumulate(Slots& slots) {
  float a[16][K], b[K][8], d[16][8];
  for (int l = 0; l < kWarpSize; ++l) {
    const auto f = slots.get<Fragments<K>>(l);
    const int g = l / 4, t = l % 4;
    for (int k8 = 0; k8 < K / 8; ++k8) {
      const int k = 8 * k8 + 2 * t;
      for (int half = 0; half < 2; ++half) {
        a[g + 8 * half][k] = low<T>(f.a[2 * k8 + half]);
        a[g + 8 * half][k + 1] = high<T>(f.a[2 * k8 + half]);
      }
      b[k][g] = low<T>(f.b[k8]);
      b[k + 1][g] = high<T>(f.b[k8]);
    }
    for (int i = 0; i < 4; ++i) d[g + 8 * (i / 2)][2 * t + i % 2] = f.d[i];
  }
  for (int k = 0; k < K; ++k)
    for (int m = 0; m < 16; ++m)
      for (int n = 0; n < 8; ++n) d[m][n] += a[m][k] * b[k][n];
  for (int l = 0; l < kWarpSize; ++l) {
    Accumulators out;
    for (int i = 0; i < 4; ++i) out.d[i] = d[l / 4 + 8 * (i / 2)][l % 4 * 2 + i % 2];
    slots.set(l, out);
  }
}

template <class T, int K>
void mma(const Site& site, float (&d)[4], const Fragments<K>& fragments) {
  const int me = lane();
  const auto out = collective(site, kFullMask, fragments, multiply_accumulate<T, K>,
                              [me](const Slots& s) { return s.get<Accumulators>(me); });
  std::memcpy(d, out.d, sizeof(d));
}

// The rows are read here, by the lane that receives them, so that the sanitizers see who reads what.
template <int Matrices>
void ldmatrix(const Site& site, uint32_t* r, const void* row, bool transposed) {
  struct Rows {
    const unsigned char* address[8 * Matrices];
  };
  const auto rows = exchange(site, kFullMask, row, [](const Slots& s) {
    Rows out;
    for (int l = 0; l < 8 * Matrices; ++l) out.address[l] = s.get<const unsigned char*>(l);
    return out;
  });
  if (lane() < 8 * Matrices && !aligned(row, 16)) fail(to_string(site) + ": a row that is not aligned to 16 bytes");
  const int g = lane() / 4, t = lane() % 4;
  for (int i = 0; i < Matrices; ++i) {
    uint16_t element[2];
    for (int j = 0; j < 2; ++j) {
      const int at_row = transposed ? 2 * t + j : g, at_column = transposed ? g : 2 * t + j;
      std::memcpy(&element[j], rows.address[8 * i + at_row] + 2 * at_column, 2);
    }
    r[i] = element[0] | uint32_t(element[1]) << 16;
  }
}

}  // namespace host_exec::ptx

namespace dit {

inline float exp2_approx(float x) {
  const float y = exp2f(x);
  return y < 0x1p-126f ? 0.f : y;
}

template <class T>
void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, HOST_EXEC_CALLER) {
  static_assert(is_half_type<T>);
  host_exec::ptx::mma<T, 16>(HOST_EXEC_SITE("mma.m16n8k16"), d,
                             {{d[0], d[1], d[2], d[3]}, {a[0], a[1], a[2], a[3]}, {b0, b1}});
}
template <class T>
void mma_m16n8k8(float (&d)[4], const uint32_t (&a)[2], uint32_t b, HOST_EXEC_CALLER) {
  static_assert(is_half_type<T>);
  host_exec::ptx::mma<T, 8>(HOST_EXEC_SITE("mma.m16n8k8"), d, {{d[0], d[1], d[2], d[3]}, {a[0], a[1]}, {b}});
}

inline void ldmatrix_x1(uint32_t& r, const void* row, HOST_EXEC_CALLER) {
  host_exec::ptx::ldmatrix<1>(HOST_EXEC_SITE("ldmatrix.x1"), &r, row, false);
}
inline void ldmatrix_x1_trans(uint32_t& r, const void* row, HOST_EXEC_CALLER) {
  host_exec::ptx::ldmatrix<1>(HOST_EXEC_SITE("ldmatrix.x1.trans"), &r, row, true);
}
inline void ldmatrix_x2(uint32_t (&r)[2], const void* row, HOST_EXEC_CALLER) {
  host_exec::ptx::ldmatrix<2>(HOST_EXEC_SITE("ldmatrix.x2"), r, row, false);
}
inline void ldmatrix_x2_trans(uint32_t (&r)[2], const void* row, HOST_EXEC_CALLER) {
  host_exec::ptx::ldmatrix<2>(HOST_EXEC_SITE("ldmatrix.x2.trans"), r, row, true);
}
inline void ldmatrix_x4(uint32_t (&r)[4], const void* row, HOST_EXEC_CALLER) {
  host_exec::ptx::ldmatrix<4>(HOST_EXEC_SITE("ldmatrix.x4"), r, row, false);
}
inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row, HOST_EXEC_CALLER) {
  host_exec::ptx::ldmatrix<4>(HOST_EXEC_SITE("ldmatrix.x4.trans"), r, row, true);
}

// The source is read at the start and again at the end: a GPU may read it at either time.
inline void cp_async16(void* smem, const void* gmem, bool pred, HOST_EXEC_CALLER) {
  const host_exec::Site site = HOST_EXEC_SITE("cp.async");
  if (!host_exec::ptx::aligned(smem, 16)) host_exec::fail(to_string(site) + ": destination not aligned to 16 bytes");
  if (pred && !host_exec::ptx::aligned(gmem, 16)) host_exec::fail(to_string(site) + ": source not aligned to 16 bytes");
  uint4 at_start{};
  if (pred) std::memcpy(&at_start, gmem, 16);
  host_exec::poison(smem, 16);
  host_exec::Block::current().thread->copies.issue([=] {
    if (pred && std::memcmp(&at_start, gmem, 16) != 0)
      host_exec::fail(to_string(site) + ": its source changed before the copy was waited for");
    std::memcpy(smem, &at_start, 16);
  });
}
inline void cp_async_commit() { host_exec::Block::current().thread->copies.commit(); }
template <int N>
void cp_async_wait(HOST_EXEC_CALLER) {
  host_exec::Block& block = host_exec::Block::current();
  host_exec::AsyncGroups& copies = block.thread->copies;
  if (copies.more_than(N)) block.wait_late(HOST_EXEC_SITE("cp.async.wait_group"));
  while (copies.more_than(N)) copies.complete_oldest();
}

}  // namespace dit
