// SPDX-License-Identifier: Apache-2.0
// adaln: schema, checks and CPU launch. Formulas in adaln_cpu.cpp and dit_fast/ops/adaln/autograd.py.
#include "ops/adaln/adaln_cpu.h"

#include "common/cpu/token_sums.h"
#include "common/stable.h"

namespace dit {
namespace {

std::tuple<Tensor, Tensor, Tensor> forward(const Tensor& x, const Tensor& shift, const Tensor& scale, double eps) {
  const char* op = "adaln";
  STD_TORCH_CHECK(x.dim() == 3, op, ": `x` must be (N, T, D), got ", x.dim(), " dimensions");
  const int64_t n = x.size(0), t = x.size(1), d = x.size(2);
  const auto type = x.scalar_type();
  check_dense(x, {n, t, d}, type, op, "x");
  const int64_t shift_stride = check_rows(shift, n, d, type, op, "shift");
  const int64_t scale_stride = check_rows(scale, n, d, type, op, "scale");
  Tensor h = empty(x, {n, t, d}), mean = empty_f32(x, {n, t}), rstd = empty_f32(x, {n, t});
  const AdalnForward args{x.const_data_ptr(), shift.const_data_ptr(), scale.const_data_ptr(), h.mutable_data_ptr(),
                          mean.mutable_data_ptr<float>(), rstd.mutable_data_ptr<float>(), t, d, shift_stride,
                          scale_stride, float(eps), dtype_of(x, op)};
  parallel(n * t, 16, args, adaln_forward);
  return {h, mean, rstd};
}

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& dh, const Tensor& x, const Tensor& scale, const Tensor& mean,
                                            const Tensor& rstd) {
  const char* op = "adaln_backward";
  STD_TORCH_CHECK(x.dim() == 3, op, ": `x` must be (N, T, D), got ", x.dim(), " dimensions");
  const int64_t n = x.size(0), t = x.size(1), d = x.size(2);
  const auto type = x.scalar_type();
  check_dense(x, {n, t, d}, type, op, "x");
  check_dense(dh, {n, t, d}, type, op, "dh");
  check_dense(mean, {n, t}, ScalarType::Float, op, "mean");
  check_dense(rstd, {n, t}, ScalarType::Float, op, "rstd");
  const int64_t scale_stride = check_rows(scale, n, d, type, op, "scale"), chunks = token_chunks(t);
  Tensor dx = empty(x, {n, t, d}), dshift = empty(x, {n, d}), dscale = empty(x, {n, d});
  Tensor partial = empty_f32(x, {n, chunks, 2, d});
  const AdalnBackward args{dh.const_data_ptr(), x.const_data_ptr(), scale.const_data_ptr(),
                           mean.const_data_ptr<float>(), rstd.const_data_ptr<float>(), dx.mutable_data_ptr(),
                           partial.mutable_data_ptr<float>(), t, d, scale_stride, chunks, dtype_of(x, op)};
  parallel(n * chunks, 1, args, adaln_backward);
  const TokenSums sums{partial.const_data_ptr<float>(), {dshift.mutable_data_ptr(), dscale.mutable_data_ptr(), nullptr},
                       2, chunks, d, args.dtype};
  parallel(n, 1, sums, finish_token_sums);
  return {dx, dshift, dscale};
}

}  // namespace
}  // namespace dit

STABLE_TORCH_LIBRARY_FRAGMENT(dit_fast_native, m) {
  m.def("adaln(Tensor x, Tensor shift, Tensor scale, float eps) -> (Tensor, Tensor, Tensor)");
  m.def(
      "adaln_backward(Tensor dh, Tensor x, Tensor scale, Tensor mean, Tensor rstd)"
      " -> (Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(dit_fast_native, CPU, m) {
  m.impl("adaln", TORCH_BOX(&dit::forward));
  m.impl("adaln_backward", TORCH_BOX(&dit::backward));
}
