// SPDX-License-Identifier: Apache-2.0
// Include only in *_cpu.cpp files.
#pragma once
#include "common/cpu/vec.h"

namespace dit::DIT_ISA {

// 2^x to 1.5 units in the last place for x from -126 up to 127; 0 below, where 2^x is a denormal; NaN for NaN.
//
// x = n + r with |r| <= 1/2, both exact; 2^r by a polynomial with relative error 2e-8 (minimax, weighted by 2^-r); 2^n is
// made in the exponent's bits, since the last bit of `shifted` is worth 1 and its lowest eight are n + 127.
inline F exp2(F x) {
  const F round = splat(0x1.8p23f + 127.f);
  const F shifted = x + round, r = x - (shifted - round);
  F p = splat(0x1.41fb2ep-13f);
  p = p * r + splat(0x1.5f3f3p-10f);
  p = p * r + splat(0x1.3b2d5p-7f);
  p = p * r + splat(0x1.c6aee6p-5f);
  p = p * r + splat(0x1.ebfbdcp-3f);
  p = p * r + splat(0x1.62e43p-1f);
  p = p * r + splat(1.f);
  return (x < splat(-126.f)) ? F{} : p * (F)((U)shifted << 23);
}

}  // namespace dit::DIT_ISA
