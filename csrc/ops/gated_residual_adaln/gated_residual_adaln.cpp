// SPDX-License-Identifier: Apache-2.0
// gated_residual_adaln: schema, checks and launches. Formulas in gated_residual_adaln_cpu.cpp, gated_residual_adaln.cuh and
// dit_fast/ops/gated_residual_adaln/autograd.py.
#include "ops/gated_residual_adaln/gated_residual_adaln.h"

#include "common/device.h"
#include "ops/gated_residual_adaln/forward.h"

namespace dit {
namespace {

#if !defined(DIT_HOST_EXEC)
inline void run(const Cpu&, const GatedResidualAdalnForward& a) {
  parallel(a.batch * a.tokens, 16, a, gated_residual_adaln_forward);
}
inline void run(const Cpu&, const GatedResidualAdalnBackward& a) {
  parallel(a.batch * a.chunks, 1, a, gated_residual_adaln_backward);
}
#endif
inline void run(const Cuda& cuda, const GatedResidualAdalnForward& a) {
  cuda.check(gated_residual_adaln_forward_cuda(a, cuda.stream()));
}
inline void run(const Cuda& cuda, const GatedResidualAdalnBackward& a) {
  cuda.check(gated_residual_adaln_backward_cuda(a, cuda.stream()));
}

template <class Device>
std::tuple<Tensor, Tensor, Tensor, Tensor> forward(Tensor x, Tensor y, Tensor gate, Tensor shift, Tensor scale,
                                                   double eps) {
  const char* op = "gated_residual_adaln";
  STD_TORCH_CHECK(x.dim() == 3, op, ": `x` must be (N, T, D), got ", x.dim(), " dimensions");
  const Device device(x, op);
  device.align({&x, &y, &gate, &shift, &scale});
  const int64_t n = x.size(0), t = x.size(1), d = x.size(2);
  const auto type = x.scalar_type();
  check_dense(x, {n, t, d}, type, op, "x");
  check_dense(y, {n, t, d}, type, op, "y");
  const int64_t gate_stride = check_rows(gate, n, d, type, op, "gate");
  const int64_t shift_stride = check_rows(shift, n, d, type, op, "shift");
  const int64_t scale_stride = check_rows(scale, n, d, type, op, "scale");
  Tensor x_new = empty(x, {n, t, d}), h = empty(x, {n, t, d}), mean = empty_f32(x, {n, t}), rstd = empty_f32(x, {n, t});
  run(device, GatedResidualAdalnForward{x.const_data_ptr(), y.const_data_ptr(), gate.const_data_ptr(),
                                        shift.const_data_ptr(), scale.const_data_ptr(), x_new.mutable_data_ptr(),
                                        h.mutable_data_ptr(), mean.mutable_data_ptr<float>(),
                                        rstd.mutable_data_ptr<float>(), n, t, d, gate_stride, shift_stride,
                                        scale_stride, float(eps), dtype_of(x, op)});
  return {x_new, h, mean, rstd};
}

template <class Device>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> backward(std::optional<Tensor> dx_new, Tensor dh, Tensor x_new,
                                                            Tensor y, Tensor gate, Tensor scale, Tensor mean,
                                                            Tensor rstd) {
  const char* op = "gated_residual_adaln_backward";
  STD_TORCH_CHECK(x_new.dim() == 3, op, ": `x_new` must be (N, T, D), got ", x_new.dim(), " dimensions");
  const Device device(x_new, op);
  device.align({&dh, &x_new, &y, &gate, &scale});
  if (dx_new) device.align({&*dx_new});
  const int64_t n = x_new.size(0), t = x_new.size(1), d = x_new.size(2);
  const auto type = x_new.scalar_type();
  check_dense(x_new, {n, t, d}, type, op, "x_new");
  check_dense(dh, {n, t, d}, type, op, "dh");
  check_dense(y, {n, t, d}, type, op, "y");
  if (dx_new) check_dense(*dx_new, {n, t, d}, type, op, "dx_new");
  check_dense(mean, {n, t}, ScalarType::Float, op, "mean");
  check_dense(rstd, {n, t}, ScalarType::Float, op, "rstd");
  const int64_t gate_stride = check_rows(gate, n, d, type, op, "gate");
  const int64_t scale_stride = check_rows(scale, n, d, type, op, "scale");
  const int64_t chunk = device.chunk_tokens(n, t), chunks = chunk_count(t, chunk);
  const Dtype dtype = dtype_of(x_new, op);
  Tensor dx = empty(x_new, {n, t, d}), dy = empty(x_new, {n, t, d});
  Tensor dgate = empty(x_new, {n, d}), dshift = empty(x_new, {n, d}), dscale = empty(x_new, {n, d});
  Tensor partial = empty_f32(x_new, {n, chunks, 3, d});
  run(device, GatedResidualAdalnBackward{
                  dx_new ? dx_new->const_data_ptr() : nullptr, dh.const_data_ptr(), x_new.const_data_ptr(),
                  y.const_data_ptr(), gate.const_data_ptr(), scale.const_data_ptr(), mean.const_data_ptr<float>(),
                  rstd.const_data_ptr<float>(), dx.mutable_data_ptr(), dy.mutable_data_ptr(),
                  partial.mutable_data_ptr<float>(), n, t, d, gate_stride, scale_stride, chunk, chunks, dtype});
  run(device, TokenSums{partial.const_data_ptr<float>(),
                        {dgate.mutable_data_ptr(), dshift.mutable_data_ptr(), dscale.mutable_data_ptr()},
                        n, 3, chunks, d, dtype});
  return {dx, dy, dgate, dshift, dscale};
}

template <class Device>
void implement(Registry& m) {
  m.impl("gated_residual_adaln", TORCH_BOX(&forward<Device>));
  m.impl("gated_residual_adaln_backward", TORCH_BOX(&backward<Device>));
}

}  // namespace

#if !defined(DIT_HOST_EXEC)
void run(const GatedResidualAdalnForward& args) { run(Cpu{}, args); }
#endif

}  // namespace dit

STABLE_TORCH_LIBRARY_FRAGMENT(DIT_LIBRARY, m) {
  m.def(
      "gated_residual_adaln(Tensor x, Tensor y, Tensor gate, Tensor shift, Tensor scale, float eps)"
      " -> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "gated_residual_adaln_backward(Tensor? dx_new, Tensor dh, Tensor x_new, Tensor y, Tensor gate, Tensor scale,"
      " Tensor mean, Tensor rstd) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
}

DIT_IMPLEMENT(dit::implement)
