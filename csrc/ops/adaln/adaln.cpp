// SPDX-License-Identifier: Apache-2.0
// adaln: schema, checks and launches. Formulas in adaln_cpu.cpp, adaln.cuh and dit_fast/ops/adaln/autograd.py.
#include "ops/adaln/adaln.h"

#include "common/device.h"

namespace dit {
namespace {

#if !defined(DIT_HOST_EXEC)
inline void run(const Cpu&, const AdalnForward& a) { parallel(a.batch * a.tokens, 16, a, adaln_forward); }
inline void run(const Cpu&, const AdalnBackward& a) { parallel(a.batch * a.chunks, 1, a, adaln_backward); }
#endif
inline void run(const Cuda& cuda, const AdalnForward& a) { cuda.check(adaln_forward_cuda(a, cuda.stream())); }
inline void run(const Cuda& cuda, const AdalnBackward& a) { cuda.check(adaln_backward_cuda(a, cuda.stream())); }

template <class Device>
std::tuple<Tensor, Tensor, Tensor> forward(Tensor x, Tensor shift, Tensor scale, double eps) {
  const char* op = "adaln";
  STD_TORCH_CHECK(x.dim() == 3, op, ": `x` must be (N, T, D), got ", x.dim(), " dimensions");
  const Device device(x, op);
  device.align({&x, &shift, &scale});
  const int64_t n = x.size(0), t = x.size(1), d = x.size(2);
  const auto type = x.scalar_type();
  check_dense(x, {n, t, d}, type, op, "x");
  const int64_t shift_stride = check_rows(shift, n, d, type, op, "shift");
  const int64_t scale_stride = check_rows(scale, n, d, type, op, "scale");
  Tensor h = empty(x, {n, t, d}), mean = empty_f32(x, {n, t}), rstd = empty_f32(x, {n, t});
  run(device, AdalnForward{x.const_data_ptr(), shift.const_data_ptr(), scale.const_data_ptr(), h.mutable_data_ptr(),
                           mean.mutable_data_ptr<float>(), rstd.mutable_data_ptr<float>(), n, t, d, shift_stride,
                           scale_stride, float(eps), dtype_of(x, op)});
  return {h, mean, rstd};
}

template <class Device>
std::tuple<Tensor, Tensor, Tensor> backward(Tensor dh, Tensor x, Tensor scale, Tensor mean, Tensor rstd) {
  const char* op = "adaln_backward";
  STD_TORCH_CHECK(x.dim() == 3, op, ": `x` must be (N, T, D), got ", x.dim(), " dimensions");
  const Device device(x, op);
  device.align({&dh, &x, &scale});
  const int64_t n = x.size(0), t = x.size(1), d = x.size(2);
  const auto type = x.scalar_type();
  check_dense(x, {n, t, d}, type, op, "x");
  check_dense(dh, {n, t, d}, type, op, "dh");
  check_dense(mean, {n, t}, ScalarType::Float, op, "mean");
  check_dense(rstd, {n, t}, ScalarType::Float, op, "rstd");
  const int64_t scale_stride = check_rows(scale, n, d, type, op, "scale");
  const int64_t chunk = device.chunk_tokens(n, t), chunks = chunk_count(t, chunk);
  const Dtype dtype = dtype_of(x, op);
  Tensor dx = empty(x, {n, t, d}), dshift = empty(x, {n, d}), dscale = empty(x, {n, d});
  Tensor partial = empty_f32(x, {n, chunks, 2, d});
  run(device, AdalnBackward{dh.const_data_ptr(), x.const_data_ptr(), scale.const_data_ptr(),
                            mean.const_data_ptr<float>(), rstd.const_data_ptr<float>(), dx.mutable_data_ptr(),
                            partial.mutable_data_ptr<float>(), n, t, d, scale_stride, chunk, chunks, dtype});
  run(device, TokenSums{partial.const_data_ptr<float>(), {dshift.mutable_data_ptr(), dscale.mutable_data_ptr()}, n, 2,
                        chunks, d, dtype});
  return {dx, dshift, dscale};
}

template <class Device>
void implement(Registry& m) {
  m.impl("adaln", TORCH_BOX(&forward<Device>));
  m.impl("adaln_backward", TORCH_BOX(&backward<Device>));
}

}  // namespace
}  // namespace dit

STABLE_TORCH_LIBRARY_FRAGMENT(DIT_LIBRARY, m) {
  m.def("adaln(Tensor x, Tensor shift, Tensor scale, float eps) -> (Tensor, Tensor, Tensor)");
  m.def(
      "adaln_backward(Tensor dh, Tensor x, Tensor scale, Tensor mean, Tensor rstd)"
      " -> (Tensor, Tensor, Tensor)");
}

DIT_IMPLEMENT(dit::implement)
