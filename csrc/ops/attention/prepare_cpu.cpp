// SPDX-License-Identifier: Apache-2.0
// prepare.h on the CPU: a row at a time, widened to float32.
#include "ops/attention/prepare.h"

#include <cmath>
#include <vector>

#include "common/cpu/vec.h"

namespace dit::DIT_ISA {
namespace {

// Where a token of the queries (side 0) or of the keys (side 1) is.
struct Token {
  int64_t side, sample, token;
};

int64_t offset(const HeadStrides& s, const Token& at, int64_t head) {
  return at.sample * s.sample + at.token * s.token + head * s.head;
}

template <class A>
Token locate(const A& a, int64_t side, int64_t index) {
  const int64_t tokens = side == 0 ? a.queries : a.keys;
  return {side, index / tokens, index % tokens};
}

// u = (x - mean) * rstd in place; returns rstd.
float normalize(float* x, int64_t d, HeadNorm norm, float eps) {
  if (norm == HeadNorm::none) return 1.f;
  if (norm == HeadNorm::layer) {
    const F mean = splat(sum_over(d, [&](int64_t i, auto n) { return load(x + i, n); }) / float(d));
    sweep(d, [&](int64_t i, auto n) { store(x + i, load(x + i, n) - mean, n); });
  }
  const float squares = sum_over(d, [&](int64_t i, auto n) {
    const F value = load(x + i, n);
    return value * value;
  });
  const float rstd = 1.f / std::sqrt(squares / float(d) + eps);
  sweep(d, [&](int64_t i, auto n) { store(x + i, load(x + i, n) * splat(rstd), n); });
  return rstd;
}

// Turns the pairs of x by the angles of `token`, or back.
void turn(float* x, const float* rope, int64_t token, int64_t tokens, int64_t d, bool back) {
  const float *cos = rope + token * (d / 2), *sin = cos + tokens * (d / 2);
  for (int64_t i = 0; i < d / 2; ++i) {
    const float even = x[2 * i], odd = x[2 * i + 1], s = back ? -sin[i] : sin[i];
    x[2 * i] = even * cos[i] - odd * s;
    x[2 * i + 1] = odd * cos[i] + even * s;
  }
}

template <class T>
void read(const T* from, float* to, int64_t d) {
  sweep(d, [&](int64_t i, auto n) { store(to + i, load(from + i, n), n); });
}

}  // namespace

void prepare(const Prepare& a, int64_t begin, int64_t end) {
  dispatch(a.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const int64_t d = a.dim;
    std::vector<float> room(d);
    float* x = room.data();
    for (int64_t item = begin; item < end; ++item) {
      const bool is_key = item >= a.batch * a.queries;
      const Token at = locate(a, is_key, is_key ? item - a.batch * a.queries : item);
      const Heads& in = is_key ? a.k : a.q;
      const MutableHeads& out = is_key ? a.k_out : a.q_out;
      const float *weight = a.affine ? a.affine + 2 * at.side * d : nullptr, *bias = weight + d;
      for (int64_t h = 0; h < a.heads; ++h) {
        read(static_cast<const T*>(in.data) + offset(in.stride, at, h), x, d);
        normalize(x, d, a.norm, a.eps);
        if (weight) sweep(d, [&](int64_t i, auto n) {
          store(x + i, load(x + i, n) * load(weight + i, n) + load(bias + i, n), n);
        });
        if (a.rope) turn(x, a.rope, at.token, a.queries, d, false);
        T* y = static_cast<T*>(out.data) + offset(out.stride, at, h);
        sweep(d, [&](int64_t i, auto n) { store(y + i, load(x + i, n), n); });
      }
    }
  });
}

void prepare_backward(const PrepareBackward& a, int64_t begin, int64_t end) {
  dispatch(a.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const int64_t d = a.dim;
    std::vector<float> room(4 * d);
    float *u = room.data(), *g = u + d, *dweight = u + 2 * d, *dbias = u + 3 * d;
    for (int64_t item = begin; item < end; ++item) {
      const int64_t side = item >= a.query_chunks(), chunk = side ? item - a.query_chunks() : item;
      const int64_t tokens = a.batch * (side ? a.keys : a.queries);
      const Heads& in = side ? a.k : a.q;
      const MutableHeads& grad = side ? a.dk : a.dq;
      const float* weight = a.affine ? a.affine + 2 * side * d : nullptr;
      std::fill(dweight, dweight + 2 * d, 0.f);
      for (int64_t index = chunk * a.chunk; index < std::min((chunk + 1) * a.chunk, tokens); ++index) {
        const Token at = locate(a, side, index);
        for (int64_t h = 0; h < a.heads; ++h) {
          T* dy = static_cast<T*>(grad.data) + offset(grad.stride, at, h);
          read(static_cast<const T*>(in.data) + offset(in.stride, at, h), u, d);
          read(static_cast<const T*>(dy), g, d);
          const F rstd = splat(normalize(u, d, a.norm, a.eps));
          if (a.rope) turn(g, a.rope, at.token, a.queries, d, true);
          F sum_g = {}, sum_gu = {};
          sweep(d, [&](int64_t i, auto n) {
            const F dyv = load(g + i, n), uv = load(u + i, n);
            store(dbias + i, load(dbias + i, n) + dyv, n);
            store(dweight + i, load(dweight + i, n) + dyv * uv, n);
            const F gv = weight ? dyv * load(weight + i, n) : dyv;
            store(g + i, gv, n);
            sum_g += keep(gv, n);
            sum_gu += keep(gv * uv, n);
          });
          const bool any = a.norm != HeadNorm::none, centred = a.norm == HeadNorm::layer;
          const F mean_g = splat(centred ? sum(sum_g) / float(d) : 0.f);
          const F mean_gu = splat(any ? sum(sum_gu) / float(d) : 0.f);
          sweep(d, [&](int64_t i, auto n) {
            store(dy + i, rstd * (load(g + i, n) - mean_g - load(u + i, n) * mean_gu), n);
          });
        }
      }
      if (!a.sums) continue;
      float* sums = a.sums + item * 4 * d;
      std::fill(sums, sums + 4 * d, 0.f);
      std::copy(dweight, dweight + 2 * d, sums + 2 * side * d);
    }
  });
}

}  // namespace dit::DIT_ISA
