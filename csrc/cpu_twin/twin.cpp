// SPDX-License-Identifier: Apache-2.0
// For tests, which compile this file (tests/ops/cpu_twin.py): the CPU's attention as it runs on processors that multiply
// pairs of bf16, with a twin of that instruction, and the pieces it is made of.
#include "ops/attention/attention_cpu.cpp"

using namespace dit;
using namespace dit::DIT_ISA;

extern "C" {

void twin_forward(const AttentionForward* a) {
  DIT_ISA::attention_forward(*a, 0, a->batch * a->heads * attention_blocks(a->queries));
}

void twin_backward(const AttentionBackward* a) { DIT_ISA::attention_backward(*a, 0, a->batch * a->heads); }

// y = e^(scale * x), n a multiple of W.
void twin_exp(const float* x, float* y, int64_t n, float scale) {
  for (int64_t i = 0; i < n; i += W) store(y + i, Exp(scale)(load(x + i)));
}

// sums += a b, a pair of bf16 in each float of a and b; n a multiple of W.
void twin_multiply_add(float* sums, const float* a, const float* b, int64_t n) {
  for (int64_t i = 0; i < n; i += W) store(sums + i, Pairs::multiply_add(load(sums + i), load(a + i), load(b + i)));
}

}  // extern "C"
