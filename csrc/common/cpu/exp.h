// SPDX-License-Identifier: Apache-2.0
// Include only in *_cpu.cpp files.
#pragma once
#include "common/cpu/vec.h"

namespace dit::DIT_ISA {

// e^(scale * x) for vectors x: to 1.5 units in the last place where there are fused multiply-adds (without, the
// rounding of scale * x comes on top), for scale * x up to 88; 0 below -87, near the denormals; NaN for NaN.
//
// scale * x = (n + r) ln 2 with |r| <= 1/2, the factor scale / ln 2 in two parts; 2^r by a polynomial with relative
// error 2e-8 (minimax, weighted by 2^-r); 2^n is made in the exponent's bits: the last bit of `shifted` is worth 1, and
// its lowest eight are n + 127.
class Exp {
 public:
  explicit Exp(float scale) {
    const double factor = scale * 1.4426950408889634;
    high_ = splat(float(factor));
    low_ = splat(float(factor - float(factor)));
  }

  F operator()(F x) const {
    const F shifted = shift(x);
    return (shifted < splat(kRound - 125.f)) ? F{} : power(x, shifted);
  }

  // The same for scale * x from -87 to 89 only, with fewer instructions; infinity from 88.4 on.
  F within(F x) const { return power(x, shift(x)); }

 private:
  static constexpr float kRound = 0x1.8p23f + 127.f;

  F shift(F x) const { return x * high_ + splat(kRound); }

  F power(F x, F shifted) const {
    const F r = x * low_ + (x * high_ - (shifted - splat(kRound)));
    F p = splat(0x1.41fb2ep-13f);
    p = p * r + splat(0x1.5f3f3p-10f);
    p = p * r + splat(0x1.3b2d5p-7f);
    p = p * r + splat(0x1.c6aee6p-5f);
    p = p * r + splat(0x1.ebfbdcp-3f);
    p = p * r + splat(0x1.62e43p-1f);
    p = p * r + splat(1.f);
    return p * (F)((U)shifted << 23);
  }

  F high_, low_;
};

}  // namespace dit::DIT_ISA
