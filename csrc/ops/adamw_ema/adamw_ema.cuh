// SPDX-License-Identifier: Apache-2.0
// CUDA kernel of adamw_ema. For each element of each tensor, with g the gradient times clip and t the tensor's step:
//
//   m = m + (1 - beta1) (g - m),   v = beta2 v + (1 - beta2) g^2
//   w = w - lr weight_decay w - lr / (1 - beta1^t) * m / (sqrt(v) / sqrt(1 - beta2^t) + eps)
//   ema = ema + (1 - ema_decay) (w - ema),   copy = w
//
// Tensors are cut into chunks of kAdamwEmaChunk elements, one block each, tensor after tensor; a block finds its tensor
// in the table `end_block`. Its threads take four elements at a time, 16 bytes of float32 or 8 of a 16-bit type; one at
// a time where an address is not aligned to that, and in what is left at the end of a tensor. One pass: everything is
// read once and written once. All arithmetic is float32; w is rounded to the parameter's dtype P before it enters ema
// and copy. G is the gradient's dtype, C the copy's.
#pragma once
#include <cstdint>

#include "common/cuda/vec.cuh"
#include "ops/adamw_ema/adamw_ema.h"

namespace dit {

constexpr int kAdamwEmaThreads = 256;

// N neighbours, 1 or 4, as one instruction loads and stores them.
template <class T, int N>
struct alignas(N * sizeof(T)) Pack {
  T values[N];
};

template <int N, class T>
DIT_DEVICE void load(const T* p, float (&out)[N]) {
  const Pack<T, N> pack = *reinterpret_cast<const Pack<T, N>*>(p);
#pragma unroll
  for (int i = 0; i < N; ++i) out[i] = to_float(pack.values[i]);
}

template <int N, class T>
DIT_DEVICE void store(T* p, const float (&in)[N]) {
  Pack<T, N> pack;
#pragma unroll
  for (int i = 0; i < N; ++i) pack.values[i] = from_float<T>(in[i]);
  *reinterpret_cast<Pack<T, N>*>(p) = pack;
}

template <class T>
DIT_DEVICE bool aligned(const T* p) {
  return reinterpret_cast<uintptr_t>(p) % sizeof(Pack<T, 4>) == 0;
}

// What the elements of one tensor share.
struct AdamwFactors {
  float clip, decay, step_size, unbias;

  DIT_DEVICE AdamwFactors(const AdamwEma& a, const float* step) {
    const float lr = a.lr_tensor ? *a.lr_tensor : a.lr, t = *step;
    clip = a.clip ? *a.clip : 1.f;
    decay = lr * a.weight_decay;
    step_size = lr / -expm1f(t * a.log_beta1);  // 1 - beta^t, exact where beta^t is near 1
    unbias = 1.f / sqrtf(-expm1f(t * a.log_beta2));
  }
};

// Steps elements at .. at + N of a tensor.
template <int N, class P, class G, class C>
DIT_DEVICE void adamw_step(const AdamwEma& a, const AdamwEma::One& one, const AdamwFactors& f, int64_t at) {
  P* const param = static_cast<P*>(one.param) + at;
  float w[N], g[N], m[N], v[N], average[N] = {};
  load<N>(param, w);
  load<N>(static_cast<const G*>(one.grad) + at, g);
  load<N>(one.exp_avg + at, m);
  load<N>(one.exp_avg_sq + at, v);
  if (one.ema) load<N>(one.ema + at, average);
#pragma unroll
  for (int i = 0; i < N; ++i) {
    g[i] *= f.clip;
    m[i] += a.rest1 * (g[i] - m[i]);
    v[i] = a.beta2 * v[i] + a.rest2 * g[i] * g[i];
    w[i] -= f.decay * w[i];
    w[i] -= f.step_size * __fdividef(m[i], sqrtf(v[i]) * f.unbias + a.eps);
    w[i] = to_float(from_float<P>(w[i]));
    average[i] += a.rest_ema * (w[i] - average[i]);
  }
  store<N>(param, w);
  store<N>(one.exp_avg + at, m);
  store<N>(one.exp_avg_sq + at, v);
  if (one.ema) store<N>(one.ema + at, average);
  if (one.copy) store<N>(static_cast<C*>(one.copy) + at, w);
}

template <class P, class G, class C>
__global__ void __launch_bounds__(kAdamwEmaThreads) adamw_ema_kernel(const __grid_constant__ AdamwEma a) {
  const int block = int(blockIdx.x);
  int index = 0, last = a.count - 1;  // of the tensor: the first whose blocks end after this one
  while (index < last) {
    const int middle = (index + last) / 2;
    if (block < a.end_block[middle]) last = middle;
    else index = middle + 1;
  }
  const AdamwEma::One one = a.tensors[index];  // a copy: nvcc splits the stores where it reads the address in between
  const AdamwFactors factors(a, one.step);
  const int64_t start = (block - (index ? a.end_block[index - 1] : 0)) * kAdamwEmaChunk;
  const int64_t end = start + kAdamwEmaChunk < one.numel ? start + kAdamwEmaChunk : one.numel;
  const bool packs = aligned(static_cast<P*>(one.param)) && aligned(static_cast<const G*>(one.grad)) &&
                     aligned(one.exp_avg) && aligned(one.exp_avg_sq) && aligned(one.ema) &&
                     aligned(static_cast<C*>(one.copy));
  const int64_t singles = packs ? end - (end - start) % 4 : start;  // from here on
  for (int64_t at = start + 4 * int(threadIdx.x); at < singles; at += 4 * kAdamwEmaThreads)
    adamw_step<4, P, G, C>(a, one, factors, at);
#pragma unroll 1
  for (int64_t at = singles + int(threadIdx.x); at < end; at += kAdamwEmaThreads)
    adamw_step<1, P, G, C>(a, one, factors, at);
}

}  // namespace dit
