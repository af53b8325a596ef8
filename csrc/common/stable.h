// SPDX-License-Identifier: Apache-2.0
// What the registering files share: torch's stable ABI, dtypes, checks and the parallel loop.
//
// Kernels receive what dit_fast/ops/_core/op.py promises: contiguous tensors, but for rows of modulation tensors,
// whose last stride is 1. The checks here guard direct callers of torch.ops.dit_fast_native.
#pragma once
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <atomic>
#include <initializer_list>
#include <tuple>
#include <vector>

#include "common/dtype.h"

namespace dit {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline Dtype dtype_of(const Tensor& t, const char* op) {
  switch (t.scalar_type()) {
    case ScalarType::Float: return Dtype::f32;
    case ScalarType::BFloat16: return Dtype::bf16;
    case ScalarType::Half: return Dtype::f16;
    default: break;
  }
  STD_TORCH_CHECK(false, op, ": dtype must be float32, bfloat16 or float16");
  return Dtype::f32;
}

inline void check_dtype(const Tensor& t, ScalarType want, const char* op, const char* name) {
  STD_TORCH_CHECK(t.scalar_type() == want, op, ": `", name, "` has the wrong dtype");
}

inline void check_shape(const Tensor& t, std::initializer_list<int64_t> want, const char* op, const char* name) {
  STD_TORCH_CHECK(t.dim() == int64_t(want.size()), op, ": `", name, "` must have ", want.size(), " dimensions, got ",
                  t.dim());
  int64_t i = 0;
  for (int64_t size : want) {
    STD_TORCH_CHECK(t.size(i) == size, op, ": `", name, "` must have size ", size, " in dimension ", i, ", got ",
                    t.size(i));
    ++i;
  }
}

// A contiguous tensor of this shape and dtype.
inline void check_dense(const Tensor& t, std::initializer_list<int64_t> want, ScalarType dtype, const char* op,
                        const char* name) {
  check_shape(t, want, op, name);
  check_dtype(t, dtype, op, name);
  STD_TORCH_CHECK(t.is_contiguous(), op, ": `", name, "` must be contiguous");
}

// Rows (N, D) whose elements lie side by side; returns the distance between rows.
inline int64_t check_rows(const Tensor& t, int64_t n, int64_t d, ScalarType dtype, const char* op, const char* name) {
  check_shape(t, {n, d}, op, name);
  check_dtype(t, dtype, op, name);
  STD_TORCH_CHECK(d <= 1 || t.stride(1) == 1, op, ": `", name, "` must have a last stride of 1");
  return t.stride(0);
}

inline Tensor empty(const Tensor& like, std::vector<int64_t> sizes) {
  return torch::stable::new_empty(like, sizes);
}
inline Tensor empty_f32(const Tensor& like, std::vector<int64_t> sizes) {
  return torch::stable::new_empty(like, sizes, ScalarType::Float);
}

// Runs kernel(args, begin, end) over `items` work items, at least `grain` a thread.
template <class Args>
inline void parallel(int64_t items, int64_t grain, const Args& args, void (*kernel)(const Args&, int64_t, int64_t)) {
  if (items == 0) return;
  torch::stable::parallel_for(0, items, grain, [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
}

// The same for items of which each is long enough to be worth an atomic operation. Threads take runs of neighbours from
// a common counter, so that one that the system has stopped for a while does not keep the others waiting: runs of
// `longest` items first, for what a kernel prepares once for a run, single items in the end.
template <class Args>
inline void parallel_in_runs(int64_t items, int64_t longest, const Args& args,
                             void (*kernel)(const Args&, int64_t, int64_t)) {
  const int64_t threads = std::min<int64_t>(items, torch::stable::get_num_threads());
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
    for (int64_t begin = next; begin < items;) {
      const int64_t run = std::clamp<int64_t>((items - begin) / (2 * threads), 1, longest);
      if (!next.compare_exchange_weak(begin, begin + run)) continue;
      kernel(args, begin, begin + run);
      begin = next;
    }
  });
}

}  // namespace dit
