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
typedef uint16_t H __attribute__((vector_size(W * 2)));

struct Full {
  constexpr operator int64_t() const { return W; }
};

inline F splat(float v) { return F{} + v; }

template <class V, class T>
inline V raw_load(const T* p) {
  V v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

// One half-precision number at a time, for instruction sets without a conversion.
inline float f16_to_f32(uint16_t h) {
  const uint32_t sign = uint32_t(h & 0x8000) << 16, exponent = (h >> 10) & 31, fraction = h & 0x3ff;
  uint32_t bits;
  if (exponent == 31) {
    bits = sign | 0x7f800000 | (fraction << 13);
  } else if (exponent == 0) {  // zero and subnormals: fraction * 2^-24
    const float f = float(fraction) * 0x1p-24f;
    std::memcpy(&bits, &f, 4);
    bits |= sign;
  } else {
    bits = sign | ((exponent + 112) << 23) | (fraction << 13);
  }
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}

inline uint16_t f32_to_f16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  const uint16_t sign = uint16_t((bits >> 16) & 0x8000);
  bits &= 0x7fffffff;
  if (bits > 0x7f800000) return uint16_t(sign | 0x7e00);   // NaN
  if (bits >= 0x477ff000) return uint16_t(sign | 0x7c00);  // rounds to infinity
  if (bits < 0x38800000) {                                 // subnormal: let the adder round at 2^-24
    float f;
    std::memcpy(&f, &bits, 4);
    f += 0.5f;
    std::memcpy(&bits, &f, 4);
    return uint16_t(sign | (bits - 0x3f000000));
  }
  bits += 0xfff + ((bits >> 13) & 1);
  return uint16_t(sign | ((bits - 0x38000000) >> 13));
}

inline F load(const float* p, Full = {}) { return raw_load<F>(p); }
inline F load(const bf16* p, Full = {}) { return (F)(__builtin_convertvector(raw_load<H>(p), U) << 16); }
inline F load(const f16* p, Full = {}) {
#if defined(__AVX512F__)
  return (F)_mm512_cvtph_ps(raw_load<__m256i>(p));
#elif defined(__F16C__)
  return (F)_mm256_cvtph_ps(raw_load<__m128i>(p));
#else
  F v;
  for (int64_t j = 0; j < W; ++j) v[j] = f16_to_f32(p[j].bits);
  return v;
#endif
}

inline void store(float* p, F v, Full = {}) { std::memcpy(p, &v, sizeof v); }
inline void store(bf16* p, F v, Full = {}) {  // round to nearest even; NaN stays NaN
  const U bits = (U)v;
  const U rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const U quiet = (bits >> 16) | 0x40;
  const H h = __builtin_convertvector((v == v) ? rounded : quiet, H);
  std::memcpy(p, &h, sizeof h);
}
inline void store(f16* p, F v, Full = {}) {
#if defined(__AVX512F__)
  const __m256i h = _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT);
  std::memcpy(p, &h, sizeof h);
#elif defined(__F16C__)
  const __m128i h = _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT);
  std::memcpy(p, &h, sizeof h);
#else
  for (int64_t j = 0; j < W; ++j) p[j].bits = f32_to_f16(v[j]);
#endif
}

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
  T room[W];
  store(room, v);
  return load(room);
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
