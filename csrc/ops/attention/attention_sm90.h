// SPDX-License-Identifier: Apache-2.0
// Attention's CUDA kernels for sm_90a: bfloat16 and float16, Dh of 64 and 72. Arguments and results as attention.h's.
#pragma once
#include "ops/attention/attention.h"

namespace dit {

// Whether these kernels take the arguments: dtype, Dh, and tensors that TMA can describe: rows at multiples of 16
// bytes, no stride of 0 but where there is one element, nothing empty. Scratch is not looked at.
bool attention_fits_sm90(const AttentionForward& a);
bool attention_fits_sm90(const AttentionBackward& a);

int attention_forward_sm90_cuda(const AttentionForward& a, void* stream);
int attention_backward_sm90_cuda(const AttentionBackward& a, void* stream);
// Floats that backward wants at `scratch`, 0 where it keeps a head on chip.
int64_t attention_backward_scratch_sm90_cuda(const AttentionBackward& a);

}  // namespace dit
