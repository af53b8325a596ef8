// SPDX-License-Identifier: Apache-2.0
// CUDA's built-in variables and functions.
//
// Each function that waits takes the line it was called from as a hidden last argument, for messages.
#pragma once
#include <math.h>

#include <type_traits>

#include "host_exec/collectives.h"
#include "host_exec/language.h"

#define threadIdx (host_exec::Block::current().thread->index)
#define blockIdx (host_exec::Block::current().index)
#define blockDim (host_exec::Block::current().block)
#define gridDim (host_exec::Block::current().grid)
constexpr int warpSize = host_exec::kWarpSize;

// The hidden arguments, and what they make.
#define HOST_EXEC_CALLER const char *file = __builtin_FILE(), int line = __builtin_LINE()
#define HOST_EXEC_SITE(name) (host_exec::Site{name, file, line})

namespace host_exec {

inline int lane() { return Block::current().thread->lane(); }

// The value of lane `source`, which must be of the mask.
template <class T>
T shuffle(const Site& site, unsigned mask, T value, int source) {
  if (!(mask >> source & 1)) fail(to_string(site) + " reads lane " + std::to_string(source) + ", outside its mask");
  return exchange(site, mask, value, [source](const Slots& s) { return s.get<T>(source); });
}

}  // namespace host_exec

// ---- barriers

inline void __syncthreads(HOST_EXEC_CALLER) {
  host_exec::Block::current().block_barrier(HOST_EXEC_SITE("__syncthreads"));
}

inline void __syncwarp(unsigned mask = host_exec::kFullMask, HOST_EXEC_CALLER) {
  char* tag = &host_exec::Block::current().warp().sync_tag;
  host_exec::sanitizers::release(tag);
  host_exec::exchange(HOST_EXEC_SITE("__syncwarp"), mask, char(0), [](const host_exec::Slots&) { return 0; });
  host_exec::sanitizers::acquire(tag);
}

inline void __threadfence() {}
inline void __threadfence_block() {}

// ---- warp exchange; `width` lanes form a group

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, HOST_EXEC_CALLER) {
  const int first = host_exec::lane() & ~(width - 1);
  return host_exec::shuffle(HOST_EXEC_SITE("__shfl_sync"), mask, value, first | (source & (width - 1)));
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, HOST_EXEC_CALLER) {
  const int me = host_exec::lane(), source = me ^ bits, end = (me | (width - 1)) + 1;
  return host_exec::shuffle(HOST_EXEC_SITE("__shfl_xor_sync"), mask, value, source < end ? source : me);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, HOST_EXEC_CALLER) {
  const int me = host_exec::lane(), source = me + int(delta), end = (me | (width - 1)) + 1;
  return host_exec::shuffle(HOST_EXEC_SITE("__shfl_down_sync"), mask, value, source < end ? source : me);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, HOST_EXEC_CALLER) {
  const int me = host_exec::lane(), source = me - int(delta), first = me & ~(width - 1);
  return host_exec::shuffle(HOST_EXEC_SITE("__shfl_up_sync"), mask, value, source >= first ? source : me);
}

inline unsigned __ballot_sync(unsigned mask, int predicate, HOST_EXEC_CALLER) {
  return host_exec::exchange(HOST_EXEC_SITE("__ballot_sync"), mask, predicate, [mask](const host_exec::Slots& s) {
    unsigned votes = 0;
    for (int l = 0; l < host_exec::kWarpSize; ++l)
      if ((mask >> l & 1) && s.get<int>(l)) votes |= 1u << l;
    return votes;
  });
}
inline int __any_sync(unsigned mask, int predicate, HOST_EXEC_CALLER) {
  return __ballot_sync(mask, predicate, file, line) != 0;
}
inline int __all_sync(unsigned mask, int predicate, HOST_EXEC_CALLER) {
  return __ballot_sync(mask, predicate, file, line) == mask;
}

// ---- atomics; return the old value

namespace host_exec {

template <class T, class Update>
T atomic_update(T* p, Update&& update) {
  T old, updated;
  __atomic_load(p, &old, __ATOMIC_RELAXED);
  do updated = update(old);
  while (!__atomic_compare_exchange(p, &old, &updated, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
  return old;
}

}  // namespace host_exec

template <class T>
T atomicAdd(T* p, std::common_type_t<T> v) {
  return host_exec::atomic_update(p, [v](T old) { return T(old + v); });
}
template <class T>
T atomicMax(T* p, std::common_type_t<T> v) {
  return host_exec::atomic_update(p, [v](T old) { return old < v ? v : old; });
}
template <class T>
T atomicMin(T* p, std::common_type_t<T> v) {
  return host_exec::atomic_update(p, [v](T old) { return v < old ? v : old; });
}
template <class T>
T atomicExch(T* p, std::common_type_t<T> v) {
  return host_exec::atomic_update(p, [v](T) { return v; });
}
template <class T>
T atomicCAS(T* p, std::common_type_t<T> expected, std::common_type_t<T> v) {
  return host_exec::atomic_update(p, [=](T old) { return old == expected ? v : old; });
}

// ---- loads and stores with a cache hint

template <class T> T __ldg(const T* p) { return *p; }
template <class T> T __ldcg(const T* p) { return *p; }
template <class T> T __ldcs(const T* p) { return *p; }
template <class T> T __ldlu(const T* p) { return *p; }
template <class T> void __stcg(T* p, std::common_type_t<T> v) { *p = v; }
template <class T> void __stcs(T* p, std::common_type_t<T> v) { *p = v; }
template <class T> void __stwt(T* p, std::common_type_t<T> v) { *p = v; }

// ---- arithmetic

inline float rsqrtf(float x) { return 1.f / sqrtf(x); }
inline double rsqrt(double x) { return 1. / sqrt(x); }
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __frcp_rn(float x) { return 1.f / x; }
inline float __fsqrt_rn(float x) { return sqrtf(x); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float __saturatef(float x) { return fminf(fmaxf(x, 0.f), 1.f); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }
inline int __ffs(int x) { return __builtin_ffs(x); }

template <class A, class B>
std::enable_if_t<std::is_arithmetic_v<A> && std::is_arithmetic_v<B>, std::common_type_t<A, B>> min(A a, B b) {
  using T = std::common_type_t<A, B>;
  if constexpr (std::is_floating_point_v<T>) return fmin(T(a), T(b));
  else return T(b) < T(a) ? T(b) : T(a);
}
template <class A, class B>
std::enable_if_t<std::is_arithmetic_v<A> && std::is_arithmetic_v<B>, std::common_type_t<A, B>> max(A a, B b) {
  using T = std::common_type_t<A, B>;
  if constexpr (std::is_floating_point_v<T>) return fmax(T(a), T(b));
  else return T(a) < T(b) ? T(b) : T(a);
}

namespace host_exec {
template <class To, class From>
To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(To));
  return to;
}
}  // namespace host_exec

inline unsigned __float_as_uint(float x) { return host_exec::bits_as<unsigned>(x); }
inline int __float_as_int(float x) { return host_exec::bits_as<int>(x); }
inline float __uint_as_float(unsigned x) { return host_exec::bits_as<float>(x); }
inline float __int_as_float(int x) { return host_exec::bits_as<float>(x); }
