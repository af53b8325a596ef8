// SPDX-License-Identifier: Apache-2.0
// gated_residual: schema, checks and launches. Formulas in gated_residual_cpu.cpp, gated_residual.cuh and
// dit_fast/ops/gated_residual/autograd.py.
#include "ops/gated_residual/gated_residual.h"

#include "common/device.h"

namespace dit {
namespace {

#if !defined(DIT_HOST_EXEC)
inline void run(const Cpu&, const GatedResidualForward& a) {
  parallel(a.batch * a.tokens, 16, a, gated_residual_forward);
}
inline void run(const Cpu&, const GatedResidualBackward& a) {
  parallel(a.batch * a.chunks, 1, a, gated_residual_backward);
}
#endif
inline void run(const Cuda& cuda, const GatedResidualForward& a) {
  cuda.check(gated_residual_forward_cuda(a, cuda.stream()));
}
inline void run(const Cuda& cuda, const GatedResidualBackward& a) {
  cuda.check(gated_residual_backward_cuda(a, cuda.stream()));
}

template <class Device>
Tensor forward(Tensor x, Tensor y, Tensor gate) {
  const char* op = "gated_residual";
  STD_TORCH_CHECK(x.dim() == 3, op, ": `x` must be (N, T, D), got ", x.dim(), " dimensions");
  const Device device(x, op);
  device.align({&x, &y, &gate});
  const int64_t n = x.size(0), t = x.size(1), d = x.size(2);
  const auto type = x.scalar_type();
  check_dense(x, {n, t, d}, type, op, "x");
  check_dense(y, {n, t, d}, type, op, "y");
  const int64_t gate_stride = check_rows(gate, n, d, type, op, "gate");
  Tensor out = empty(x, {n, t, d});
  run(device, GatedResidualForward{x.const_data_ptr(), y.const_data_ptr(), gate.const_data_ptr(),
                                   out.mutable_data_ptr(), n, t, d, gate_stride, dtype_of(x, op)});
  return out;
}

template <class Device>
std::tuple<Tensor, Tensor> backward(Tensor dout, Tensor y, Tensor gate) {
  const char* op = "gated_residual_backward";
  STD_TORCH_CHECK(y.dim() == 3, op, ": `y` must be (N, T, D), got ", y.dim(), " dimensions");
  const Device device(y, op);
  device.align({&dout, &y, &gate});
  const int64_t n = y.size(0), t = y.size(1), d = y.size(2);
  const auto type = y.scalar_type();
  check_dense(y, {n, t, d}, type, op, "y");
  check_dense(dout, {n, t, d}, type, op, "dout");
  const int64_t gate_stride = check_rows(gate, n, d, type, op, "gate");
  const int64_t chunk = device.chunk_tokens(n, t), chunks = chunk_count(t, chunk);
  const Dtype dtype = dtype_of(y, op);
  Tensor dy = empty(y, {n, t, d}), dgate = empty(y, {n, d}), partial = empty_f32(y, {n, chunks, 1, d});
  run(device, GatedResidualBackward{dout.const_data_ptr(), y.const_data_ptr(), gate.const_data_ptr(),
                                    dy.mutable_data_ptr(), partial.mutable_data_ptr<float>(), n, t, d, gate_stride,
                                    chunk, chunks, dtype});
  run(device, TokenSums{partial.const_data_ptr<float>(), {dgate.mutable_data_ptr()}, n, 1, chunks, d, dtype});
  return {dy, dgate};
}

template <class Device>
void implement(Registry& m) {
  m.impl("gated_residual", TORCH_BOX(&forward<Device>));
  m.impl("gated_residual_backward", TORCH_BOX(&backward<Device>));
}

}  // namespace
}  // namespace dit

STABLE_TORCH_LIBRARY_FRAGMENT(DIT_LIBRARY, m) {
  m.def("gated_residual(Tensor x, Tensor y, Tensor gate) -> Tensor");
  m.def("gated_residual_backward(Tensor dout, Tensor y, Tensor gate) -> (Tensor, Tensor)");
}

DIT_IMPLEMENT(dit::implement)
