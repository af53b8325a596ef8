// SPDX-License-Identifier: Apache-2.0
// A vector of W floats on GCC's and Clang's vector extensions, loaded from and stored to float32, bf16 and fp16.
// Include only in *_cpu.cpp files: everything lives in the namespace of the instruction set being compiled.
//
//   sweep(D, [&](int64_t i, auto n) { store(y + i, load(x + i, n) * splat(2.f), n); });
//
// visits 0, W, 2W, ...; n is Full{} but for a last incomplete vector, where it is the number of lanes left. Lanes
// past n load as zero and are not stored. Neither load nor store needs alignment.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "common/dtype.h"

#ifndef DIT_ISA
#error "compile with -DDIT_ISA=portable, avx2 or avx512"
#endif

namespace dit::DIT_ISA {

#if defined(__AVX512F__)
constexpr int64_t W = 16;
#elif defined(__AVX2__)
constexpr int64_t W = 8;
#else
constexpr int64_t W = 4;
#endif

typedef float F __attribute__((vector_size(W * 4)));
typedef uint32_t U __attribute__((vector_size(W * 4)));
typedef int32_t I __attribute__((vector_size(W * 4)));
typedef uint16_t H __attribute__((vector_size(W * 2)));

struct Full {
  constexpr operator int64_t() const { return W; }
};

inline F splat(float v) { return v - F{}; }  // v - 0, unlike v + 0, is v for every v and costs no arithmetic

template <class V, class T>
inline V raw_load(const T* p) {
  V v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

// 16-bit integers to 32-bit lanes and back (values up to 0xffff). Spelled out because GCC's convertvector takes three
// to five instructions where one or two do.
inline U widen(H h) {
#if defined(__AVX512F__)
  return (U)_mm512_cvtepu16_epi32((__m256i)h);
#elif defined(__AVX2__)
  return (U)_mm256_cvtepu16_epi32((__m128i)h);
#elif defined(__SSE2__)
  return (U)_mm_unpacklo_epi16(_mm_set_epi64x(0, (long long)h), _mm_setzero_si128());
#else
  return __builtin_convertvector(h, U);
#endif
}
inline H narrow(U u) {
#if defined(__AVX512F__)
  return (H)_mm512_cvtepi32_epi16((__m512i)u);
#elif defined(__AVX2__)
  return (H)_mm_packus_epi32(_mm256_castsi256_si128((__m256i)u), _mm256_extracti128_si256((__m256i)u, 1));
#elif defined(__SSE2__)
  const __m128i extended = _mm_srai_epi32(_mm_slli_epi32((__m128i)u, 16), 16);  // SSE2 packs signed numbers only
  return (H)_mm_cvtsi128_si64(_mm_packs_epi32(extended, extended));
#else
  return __builtin_convertvector(u, H);
#endif
}

inline F unpack(bf16, H h) { return (F)(widen(h) << 16); }
inline H pack(bf16, F v) {  // round to nearest even; NaN stays NaN
  const U bits = (U)v, quiet = U{} + 0x7fc0;
  return narrow((v == v) ? (bits + 0x7fff + ((bits >> 16) & 1)) >> 16 : quiet);
}

inline F unpack(f16, H h) {
#if defined(__AVX512F__)
  return (F)_mm512_cvtph_ps((__m256i)h);
#elif defined(__F16C__)
  return (F)_mm256_cvtph_ps((__m128i)h);
#else
  const U bits = widen(h), magnitude = bits & 0x7fff, normal = (magnitude << 13) + 0x38000000;
  const U special = normal + 0x38000000;  // infinity and NaN: the exponent becomes 255
  const F subnormal = __builtin_convertvector((I)magnitude, F) * 0x1p-24f;
  const U finite = ((I)magnitude < 0x400) ? (U)subnormal : normal;
  return (F)((((I)magnitude < 0x7c00) ? finite : special) | ((bits & 0x8000) << 16));
#endif
}
inline H pack(f16, F v) {  // round to nearest even
#if defined(__AVX512F__)
  return (H)_mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT);
#elif defined(__F16C__)
  return (H)_mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT);
#else
  const U bits = (U)v, magnitude = bits & 0x7fffffff, infinity = U{} + 0x7c00, quiet = U{} + 0x7e00;
  const U normal = (magnitude + 0xfff + ((magnitude >> 13) & 1) - 0x38000000) >> 13;
  const U subnormal = (U)((F)magnitude + 0.5f) - 0x3f000000;  // the adder rounds at 2^-24
  U half = ((I)magnitude < 0x38800000) ? subnormal : normal;
  half = ((I)magnitude < 0x477ff000) ? half : infinity;  // rounds to infinity from 65520 on
  half = (v == v) ? half : quiet;
  return narrow(half | ((bits >> 16) & 0x8000));
#endif
}

inline F load(const float* p, Full = {}) { return raw_load<F>(p); }
inline void store(float* p, F v, Full = {}) { std::memcpy(p, &v, sizeof v); }
template <class T>
inline F load(const T* p, Full = {}) {
  return unpack(T{}, raw_load<H>(p));
}
template <class T>
inline void store(T* p, F v, Full = {}) {
  const H h = pack(T{}, v);
  std::memcpy(p, &h, sizeof h);
}

// One element.
inline float to_f32(float v) { return v; }
inline float to_f32(bf16 v) {
  const uint32_t bits = uint32_t(v.bits) << 16;
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}
inline float to_f32(f16 v) { return unpack(v, H{v.bits})[0]; }

template <class T>
inline F load(const T* p, int64_t n) {
  T room[W] = {};
  std::memcpy(static_cast<void*>(room), p, n * sizeof(T));
  return load(room, Full{});
}
template <class T>
inline void store(T* p, F v, int64_t n) {
  T room[W];
  store(room, v, Full{});
  std::memcpy(static_cast<void*>(p), room, n * sizeof(T));
}

template <class Body>
inline void sweep(int64_t d, Body&& body) {
  int64_t i = 0;
  for (; i + W <= d; i += W) body(i, Full{});
  if (i < d) body(i, d - i);
}

// The number that storing v as T and loading it again gives.
template <class T>
inline F rounded(F v) {
  return unpack(T{}, pack(T{}, v));
}
template <>
inline F rounded<float>(F v) {
  return v;
}

inline float sum(F v) {
  float s[W];
  std::memcpy(s, &v, sizeof v);
  for (int64_t step = W / 2; step > 0; step /= 2)
    for (int64_t j = 0; j < step; ++j) s[j] += s[j + step];
  return s[0];
}

// v with the lanes from n on set to zero.
inline F keep(F v, Full) { return v; }
inline F keep(F v, int64_t n) {
  for (int64_t j = n; j < W; ++j) v[j] = 0.f;
  return v;
}

// Sum over 0..d of term(i, n); four accumulators hide the adder's latency.
template <class Term>
inline float sum_over(int64_t d, Term&& term) {
  F a = {}, b = {}, c = {}, e = {};
  int64_t i = 0;
  for (; i + 4 * W <= d; i += 4 * W) {
    a += term(i, Full{});
    b += term(i + W, Full{});
    c += term(i + 2 * W, Full{});
    e += term(i + 3 * W, Full{});
  }
  for (; i + W <= d; i += W) a += term(i, Full{});
  if (i < d) b += keep(term(i, d - i), d - i);
  return sum((a + b) + (c + e));
}

}  // namespace dit::DIT_ISA
