// SPDX-License-Identifier: Apache-2.0
// gated_residual_adaln: schema, checks and CPU launch. Formulas in gated_residual_adaln_cpu.cpp and
// dit_fast/ops/gated_residual_adaln/autograd.py.
#include "ops/gated_residual_adaln/gated_residual_adaln_cpu.h"

#include <optional>

#include "common/cpu/token_sums.h"
#include "common/stable.h"

namespace dit {
namespace {

std::tuple<Tensor, Tensor, Tensor, Tensor> forward(const Tensor& x, const Tensor& y, const Tensor& gate,
                                                   const Tensor& shift, const Tensor& scale, double eps) {
  const char* op = "gated_residual_adaln";
  STD_TORCH_CHECK(x.dim() == 3, op, ": `x` must be (N, T, D), got ", x.dim(), " dimensions");
  const int64_t n = x.size(0), t = x.size(1), d = x.size(2);
  const auto type = x.scalar_type();
  check_dense(x, {n, t, d}, type, op, "x");
  check_dense(y, {n, t, d}, type, op, "y");
  const int64_t gate_stride = check_rows(gate, n, d, type, op, "gate");
  const int64_t shift_stride = check_rows(shift, n, d, type, op, "shift");
  const int64_t scale_stride = check_rows(scale, n, d, type, op, "scale");
  Tensor x_new = empty(x, {n, t, d}), h = empty(x, {n, t, d}), mean = empty_f32(x, {n, t}), rstd = empty_f32(x, {n, t});
  const GatedResidualAdalnForward args{
      x.const_data_ptr(), y.const_data_ptr(), gate.const_data_ptr(), shift.const_data_ptr(), scale.const_data_ptr(),
      x_new.mutable_data_ptr(), h.mutable_data_ptr(), mean.mutable_data_ptr<float>(), rstd.mutable_data_ptr<float>(),
      t, d, gate_stride, shift_stride, scale_stride, float(eps), dtype_of(x, op)};
  parallel(n * t, 16, args, gated_residual_adaln_forward);
  return {x_new, h, mean, rstd};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> backward(std::optional<Tensor> dx_new, const Tensor& dh,
                                                            const Tensor& x_new, const Tensor& y, const Tensor& gate,
                                                            const Tensor& scale, const Tensor& mean,
                                                            const Tensor& rstd) {
  const char* op = "gated_residual_adaln_backward";
  STD_TORCH_CHECK(x_new.dim() == 3, op, ": `x_new` must be (N, T, D), got ", x_new.dim(), " dimensions");
  const int64_t n = x_new.size(0), t = x_new.size(1), d = x_new.size(2);
  const auto type = x_new.scalar_type();
  check_dense(x_new, {n, t, d}, type, op, "x_new");
  check_dense(dh, {n, t, d}, type, op, "dh");
  check_dense(y, {n, t, d}, type, op, "y");
  if (dx_new) check_dense(*dx_new, {n, t, d}, type, op, "dx_new");
  check_dense(mean, {n, t}, ScalarType::Float, op, "mean");
  check_dense(rstd, {n, t}, ScalarType::Float, op, "rstd");
  const int64_t gate_stride = check_rows(gate, n, d, type, op, "gate");
  const int64_t scale_stride = check_rows(scale, n, d, type, op, "scale"), chunks = token_chunks(t);
  Tensor dx = empty(x_new, {n, t, d}), dy = empty(x_new, {n, t, d});
  Tensor dgate = empty(x_new, {n, d}), dshift = empty(x_new, {n, d}), dscale = empty(x_new, {n, d});
  Tensor partial = empty_f32(x_new, {n, chunks, 3, d});
  const GatedResidualAdalnBackward args{
      dx_new ? dx_new->const_data_ptr() : nullptr, dh.const_data_ptr(), x_new.const_data_ptr(), y.const_data_ptr(),
      gate.const_data_ptr(), scale.const_data_ptr(), mean.const_data_ptr<float>(), rstd.const_data_ptr<float>(),
      dx.mutable_data_ptr(), dy.mutable_data_ptr(), partial.mutable_data_ptr<float>(), t, d, gate_stride, scale_stride,
      chunks, dtype_of(x_new, op)};
  parallel(n * chunks, 1, args, gated_residual_adaln_backward);
  const TokenSums sums{partial.const_data_ptr<float>(),
                       {dgate.mutable_data_ptr(), dshift.mutable_data_ptr(), dscale.mutable_data_ptr()},
                       3, chunks, d, args.dtype};
  parallel(n, 1, sums, finish_token_sums);
  return {dx, dy, dgate, dshift, dscale};
}

}  // namespace
}  // namespace dit

STABLE_TORCH_LIBRARY_FRAGMENT(dit_fast_native, m) {
  m.def(
      "gated_residual_adaln(Tensor x, Tensor y, Tensor gate, Tensor shift, Tensor scale, float eps)"
      " -> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "gated_residual_adaln_backward(Tensor? dx_new, Tensor dh, Tensor x_new, Tensor y, Tensor gate, Tensor scale,"
      " Tensor mean, Tensor rstd) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(dit_fast_native, CPU, m) {
  m.impl("gated_residual_adaln", TORCH_BOX(&dit::forward));
  m.impl("gated_residual_adaln_backward", TORCH_BOX(&dit::backward));
}
