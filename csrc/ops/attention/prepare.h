// SPDX-License-Identifier: Apache-2.0
// Before the logits: each head's row x of the queries and of the keys normalised and rotated, in one pass.
//
//   u = (x - mean) * rstd          rms: mean = 0, rstd = 1 / sqrt(mean(x^2) + eps);   no norm: u = x
//   w = u * weight + bias
//   y[2i], y[2i+1] = w[2i] cos - w[2i+1] sin,  w[2i+1] cos + w[2i] sin        for the angle (t, i) of the token t
//
// The backward turns dy back, then with g = dy * weight
//   dweight = sum(dy * u),  dbias = sum(dy),  dx = rstd * (g - mean(g) - u * mean(g * u))       rms: without mean(g)
// u and rstd are made again from x. dy is read from where dx is then written. Arithmetic is float32; y and dx are
// rounded once.
//
// The rows are those of N * Tq tokens of queries, then N * Tk tokens of keys, H of them each. For the sums over rows,
// both are cut into chunks of `chunk` tokens; a chunk is added up in a fixed order, then the chunks are (token_sums.h).
#pragma once
#include "common/cpu/isa.h"
#include "common/dtype.h"
#include "ops/attention/heads.h"

namespace dit {

enum class HeadNorm : int64_t { none = 0, rms = 1, layer = 2 };

struct Prepare {
  Heads q, k;
  const float* affine;   // (4, Dh): q weight, q bias, k weight, k bias; or null: 1 and 0
  const float* rope;     // (2, T, Dh/2) cos and sin, T = Tq = Tk; or null
  MutableHeads q_out, k_out;
  int64_t batch, queries, keys, heads, dim;
  float eps;
  HeadNorm norm;
  Dtype dtype;

  int64_t tokens() const { return batch * (queries + keys); }
};

struct PrepareBackward {
  Heads q, k;
  const float *affine, *rope;
  MutableHeads dq, dk;  // in: gradients of what `Prepare` wrote; out: of what it read
  float* sums;          // (chunks(), 4, Dh); null where affine is
  int64_t batch, queries, keys, heads, dim;
  int64_t chunk;
  float eps;
  HeadNorm norm;
  Dtype dtype;

  int64_t query_chunks() const { return (batch * queries + chunk - 1) / chunk; }
  int64_t chunks() const { return query_chunks() + (batch * keys + chunk - 1) / chunk; }
};

DIT_CPU_KERNEL(prepare, Prepare)                   // items: tokens, those of the queries first
DIT_CPU_KERNEL(prepare_backward, PrepareBackward)  // items: chunks

int prepare_cuda(const Prepare& a, void* stream);
int prepare_backward_cuda(const PrepareBackward& a, void* stream);

}  // namespace dit
