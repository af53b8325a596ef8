// SPDX-License-Identifier: Apache-2.0
// Attention on the CPU, a row of P at a time in float32. Formulas in dit_fast/ops/attention/autograd.py.
#include "ops/attention/attention.h"

#include <vector>

#include "common/cpu/vec.h"

namespace dit::DIT_ISA {
namespace {

template <class T>
const T* row(const Heads& x, int64_t n, int64_t t, int64_t h) {
  return static_cast<const T*>(x.data) + n * x.stride.sample + t * x.stride.token + h * x.stride.head;
}
template <class T>
T* row(const MutableHeads& x, int64_t n, int64_t t, int64_t h) {
  return static_cast<T*>(x.data) + n * x.stride.sample + t * x.stride.token + h * x.stride.head;
}

template <class A, class B>
float dot(const A* a, const B* b, int64_t d) {
  return sum_over(d, [&](int64_t i, auto n) { return load(a + i, n) * load(b + i, n); });
}
template <class A>
void add(float* y, float factor, const A* x, int64_t d) {
  sweep(d, [&](int64_t i, auto n) { store(y + i, load(y + i, n) + splat(factor) * load(x + i, n), n); });
}

// p[j] = softmax of scale q k_j; returns the log-sum-exp.
template <class T>
float softmax_row(const T* q, const Heads& k, int64_t n, int64_t h, int64_t keys, int64_t d, float scale, float* p) {
  float top = -INFINITY, total = 0.f;
  for (int64_t j = 0; j < keys; ++j) top = std::max(top, p[j] = scale * dot(q, row<T>(k, n, j, h), d));
  for (int64_t j = 0; j < keys; ++j) total += p[j] = std::exp(p[j] - top);
  for (int64_t j = 0; j < keys; ++j) p[j] /= total;
  return top + std::log(total);
}

}  // namespace

void attention_forward(const AttentionForward& a, int64_t begin, int64_t end) {
  dispatch(a.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    std::vector<float> p(a.keys), acc(a.dim);
    for (int64_t item = begin; item < end; ++item) {
      const int64_t n = item / a.heads, h = item % a.heads;
      for (int64_t i = 0; i < a.queries; ++i) {
        a.lse[item * a.queries + i] = softmax_row(row<T>(a.q, n, i, h), a.k, n, h, a.keys, a.dim, a.scale, p.data());
        std::fill(acc.begin(), acc.end(), 0.f);
        for (int64_t j = 0; j < a.keys; ++j) add(acc.data(), p[j], row<T>(a.v, n, j, h), a.dim);
        T* out = static_cast<T*>(a.out) + ((n * a.queries + i) * a.heads + h) * a.dim;
        sweep(a.dim, [&](int64_t c, auto m) { store(out + c, load(acc.data() + c, m), m); });
      }
    }
  });
}

void attention_backward(const AttentionBackward& a, int64_t begin, int64_t end) {
  dispatch(a.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const int64_t d = a.dim;
    std::vector<float> p(a.keys), dp(a.keys), dq(d), dk(a.keys * d), dv(a.keys * d);
    for (int64_t item = begin; item < end; ++item) {
      const int64_t n = item / a.heads, h = item % a.heads;
      std::fill(dk.begin(), dk.end(), 0.f);
      std::fill(dv.begin(), dv.end(), 0.f);
      for (int64_t i = 0; i < a.queries; ++i) {
        const T* q = row<T>(a.q, n, i, h);
        const T* dout = static_cast<const T*>(a.dout) + ((n * a.queries + i) * a.heads + h) * d;
        softmax_row(q, a.k, n, h, a.keys, d, a.scale, p.data());
        float delta = 0.f;
        for (int64_t j = 0; j < a.keys; ++j) delta += p[j] * (dp[j] = dot(dout, row<T>(a.v, n, j, h), d));
        std::fill(dq.begin(), dq.end(), 0.f);
        for (int64_t j = 0; j < a.keys; ++j) {
          const float ds = a.scale * p[j] * (dp[j] - delta);
          add(dq.data(), ds, row<T>(a.k, n, j, h), d);
          add(dk.data() + j * d, ds, q, d);
          add(dv.data() + j * d, p[j], dout, d);
        }
        T* to = row<T>(a.dq, n, i, h);
        sweep(d, [&](int64_t c, auto m) { store(to + c, load(dq.data() + c, m), m); });
      }
      for (int64_t j = 0; j < a.keys; ++j) {
        T *to_k = row<T>(a.dk, n, j, h), *to_v = row<T>(a.dv, n, j, h);
        sweep(d, [&](int64_t c, auto m) {
          store(to_k + c, load(dk.data() + j * d + c, m), m);
          store(to_v + c, load(dv.data() + j * d + c, m), m);
        });
      }
    }
  });
}

}  // namespace dit::DIT_ISA
