// SPDX-License-Identifier: Apache-2.0
// gated_residual: schema, checks and CPU launch. Formulas in gated_residual_cpu.cpp and
// dit_fast/ops/gated_residual/autograd.py.
#include "ops/gated_residual/gated_residual_cpu.h"

#include "common/cpu/token_sums.h"
#include "common/stable.h"

namespace dit {
namespace {

Tensor forward(const Tensor& x, const Tensor& y, const Tensor& gate) {
  const char* op = "gated_residual";
  STD_TORCH_CHECK(x.dim() == 3, op, ": `x` must be (N, T, D), got ", x.dim(), " dimensions");
  const int64_t n = x.size(0), t = x.size(1), d = x.size(2);
  const auto type = x.scalar_type();
  check_dense(x, {n, t, d}, type, op, "x");
  check_dense(y, {n, t, d}, type, op, "y");
  const int64_t gate_stride = check_rows(gate, n, d, type, op, "gate");
  Tensor out = empty(x, {n, t, d});
  const GatedResidualForward args{x.const_data_ptr(), y.const_data_ptr(), gate.const_data_ptr(),
                                  out.mutable_data_ptr(), t, d, gate_stride, dtype_of(x, op)};
  parallel(n * t, 16, args, gated_residual_forward);
  return out;
}

std::tuple<Tensor, Tensor> backward(const Tensor& dout, const Tensor& y, const Tensor& gate) {
  const char* op = "gated_residual_backward";
  STD_TORCH_CHECK(y.dim() == 3, op, ": `y` must be (N, T, D), got ", y.dim(), " dimensions");
  const int64_t n = y.size(0), t = y.size(1), d = y.size(2);
  const auto type = y.scalar_type();
  check_dense(y, {n, t, d}, type, op, "y");
  check_dense(dout, {n, t, d}, type, op, "dout");
  const int64_t gate_stride = check_rows(gate, n, d, type, op, "gate"), chunks = token_chunks(t);
  Tensor dy = empty(y, {n, t, d}), dgate = empty(y, {n, d}), partial = empty_f32(y, {n, chunks, 1, d});
  const GatedResidualBackward args{dout.const_data_ptr(), y.const_data_ptr(), gate.const_data_ptr(),
                                   dy.mutable_data_ptr(), partial.mutable_data_ptr<float>(), t, d, gate_stride,
                                   chunks, dtype_of(y, op)};
  parallel(n * chunks, 1, args, gated_residual_backward);
  const TokenSums sums{partial.const_data_ptr<float>(), {dgate.mutable_data_ptr(), nullptr, nullptr}, 1, chunks, d,
                       args.dtype};
  parallel(n, 1, sums, finish_token_sums);
  return {dy, dgate};
}

}  // namespace
}  // namespace dit

STABLE_TORCH_LIBRARY_FRAGMENT(dit_fast_native, m) {
  m.def("gated_residual(Tensor x, Tensor y, Tensor gate) -> Tensor");
  m.def("gated_residual_backward(Tensor dout, Tensor y, Tensor gate) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(dit_fast_native, CPU, m) {
  m.impl("gated_residual", TORCH_BOX(&dit::forward));
  m.impl("gated_residual_backward", TORCH_BOX(&dit::backward));
}
