// SPDX-License-Identifier: Apache-2.0
// Sixteen bytes of a tensor: what one thread loads and stores at a time. Arithmetic is float32.
#pragma once
#include <cstdint>

#include "common/cuda/platform.h"

namespace dit {

template <class T>
constexpr int kVec = 16 / int(sizeof(T));  // elements of a vector

// As loaded. Kept in this form between uses: half the registers of its floats.
template <class T>
struct alignas(16) Vec {
  uint32_t words[4];
};

template <class T>
DIT_DEVICE Vec<T> load_vec(const T* p) {
  return *reinterpret_cast<const Vec<T>*>(p);
}

template <class T>
DIT_DEVICE void store_vec(T* p, const Vec<T>& v) {
  *reinterpret_cast<Vec<T>*>(p) = v;
}

DIT_DEVICE float bits_to_float(uint32_t bits) {
  float value;
  memcpy(&value, &bits, 4);
  return value;
}

DIT_DEVICE void unpack(const Vec<float>& v, float (&out)[4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) out[i] = bits_to_float(v.words[i]);
}

DIT_DEVICE void unpack(const Vec<__nv_bfloat16>& v, float (&out)[8]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {  // a bfloat16 is the upper half of a float
    out[2 * i] = bits_to_float(v.words[i] << 16);
    out[2 * i + 1] = bits_to_float(v.words[i] & 0xffff0000u);
  }
}

DIT_DEVICE float half_bits_to_float(uint32_t bits) {
  __half_raw half;
  half.x = static_cast<unsigned short>(bits);
  return __half2float(half);
}

DIT_DEVICE void unpack(const Vec<__half>& v, float (&out)[8]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    out[2 * i] = half_bits_to_float(v.words[i] & 0xffffu);
    out[2 * i + 1] = half_bits_to_float(v.words[i] >> 16);
  }
}

DIT_DEVICE void pack(const float (&in)[4], Vec<float>& out) {
#pragma unroll
  for (int i = 0; i < 4; ++i) memcpy(&out.words[i], &in[i], 4);
}

DIT_DEVICE void pack(const float (&in)[8], Vec<__nv_bfloat16>& out) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(in[2 * i], in[2 * i + 1]);
    memcpy(&out.words[i], &pair, 4);
  }
}

DIT_DEVICE void pack(const float (&in)[8], Vec<__half>& out) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const __half2 pair = __floats2half2_rn(in[2 * i], in[2 * i + 1]);
    memcpy(&out.words[i], &pair, 4);
  }
}

DIT_DEVICE float to_float(float v) { return v; }
DIT_DEVICE float to_float(__nv_bfloat16 v) { return __bfloat162float(v); }
DIT_DEVICE float to_float(__half v) { return __half2float(v); }

template <class T>
DIT_DEVICE T from_float(float v);
template <>
DIT_DEVICE float from_float<float>(float v) {
  return v;
}
template <>
DIT_DEVICE __nv_bfloat16 from_float<__nv_bfloat16>(float v) {
  return __float2bfloat16_rn(v);
}
template <>
DIT_DEVICE __half from_float<__half>(float v) {
  return __float2half_rn(v);
}

}  // namespace dit
