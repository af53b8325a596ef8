// SPDX-License-Identifier: Apache-2.0
// The CPU kernels that linear and linear_gelu are made of: schemas, checks and launches.
#include "ops/linear_gelu/linear_gelu.h"

#include <functional>
#include <numeric>

#include "common/device.h"
#include "ops/linear_gelu/forward.h"

namespace dit {

void run(const Linear& args) {
  if (args.rows == 0) return;
  const bool few = args.rows <= kLinearFewRows && args.input_step == 1 && args.epilogue != Epilogue::gelu_gradient;
  if (few) parallel(args.blocks(), 2, args, linear_few_rows);
  else parallel_in_runs(args.spans() * args.blocks(), kLinearRun, args, linear);
}

namespace {

// x (..., K), weight (F, K), bias (F,), all dense -> y (..., F), and u (M, F), or (0, F) unless `keep`.
std::tuple<Tensor, Tensor> forward(Tensor x, Tensor weight, std::optional<Tensor> bias, bool gelu, bool keep) {
  const char* op = "linear";
  STD_TORCH_CHECK(x.dim() > 0 && x.is_contiguous(), op, ": `x` must be (..., K) and contiguous");
  STD_TORCH_CHECK(weight.dim() == 2, op, ": `weight` must be (F, K), got ", weight.dim(), " dimensions");
  STD_TORCH_CHECK(gelu || !keep, op, ": without `gelu`, `keep` would keep y twice");
  const int64_t last = x.dim() - 1, k = x.size(last), f = weight.size(0);
  const auto type = x.scalar_type();
  const Dtype dtype = dtype_of(x, op);
  check_dense(weight, {f, k}, type, op, "weight");
  if (bias) check_dense(*bias, {f}, type, op, "bias");
  std::vector<int64_t> sizes;
  for (int64_t i = 0; i < last; ++i) sizes.push_back(x.size(i));
  const int64_t m = std::accumulate(sizes.begin(), sizes.end(), int64_t{1}, std::multiplies<>());
  sizes.push_back(f);
  Tensor y = empty(x, sizes), u = empty(x, {keep ? m : 0, f});
  run(Linear{x.const_data_ptr(), weight.const_data_ptr(), bias ? bias->const_data_ptr() : nullptr, y.mutable_data_ptr(),
             keep ? u.mutable_data_ptr() : nullptr, m, k, f, 1, k,
             keep ? Epilogue::gelu_kept : gelu ? Epilogue::gelu : Epilogue::none, dtype});
  return {y, u};
}

// dy weight, a linear layer whose weight lies the other way round, of checked dy (M, F) and weight (F, K). It has no
// place to write to yet.
Linear product_with_weight(const Tensor& dy, const Tensor& weight, const char* op) {
  STD_TORCH_CHECK(dy.dim() == 2, op, ": `dy` must be (M, F), got ", dy.dim(), " dimensions");
  STD_TORCH_CHECK(weight.dim() == 2, op, ": `weight` must be (F, K), got ", weight.dim(), " dimensions");
  const int64_t m = dy.size(0), f = dy.size(1), k = weight.size(1);
  const auto type = dy.scalar_type();
  const Dtype dtype = dtype_of(dy, op);
  check_dense(dy, {m, f}, type, op, "dy");
  check_dense(weight, {f, k}, type, op, "weight");
  return {dy.const_data_ptr(), weight.const_data_ptr(), nullptr, nullptr, nullptr, m, f, k, k, 1, Epilogue::none,
          dtype};
}

Tensor input_gradient(Tensor dy, Tensor weight) {
  Linear args = product_with_weight(dy, weight, "linear_input_gradient");
  Tensor dx = empty(dy, {args.rows, args.outputs});
  args.y = dx.mutable_data_ptr();
  run(args);
  return dx;
}

// With u (M, K) before a GELU and y = gelu(u) weight^T: du, gelu(u) and dbias, the sum of du over rows, from dy.
std::tuple<Tensor, Tensor, Tensor> hidden_gradient(Tensor dy, Tensor weight, Tensor u) {
  const char* op = "linear_hidden_gradient";
  Linear args = product_with_weight(dy, weight, op);
  const int64_t m = args.rows, k = args.outputs;
  check_dense(u, {m, k}, dy.scalar_type(), op, "u");
  Tensor du = empty(dy, {m, k}), y = empty(dy, {m, k}), dbias = empty(dy, {k});
  args.epilogue = Epilogue::gelu_gradient;
  args.u = u.mutable_data_ptr();
  args.y = du.mutable_data_ptr();
  args.activated = y.mutable_data_ptr();
  const int64_t spans = m > 0 ? args.spans() : 0;
  Tensor partial = empty_f32(dy, {1, spans, 1, k});
  args.partial = partial.mutable_data_ptr<float>();
  run(args);
  parallel(1, 1, TokenSums{args.partial, {dbias.mutable_data_ptr()}, 1, 1, spans, k, args.dtype}, finish_token_sums);
  return {du, y, dbias};
}

std::tuple<Tensor, Tensor> gelu_gradient(Tensor dy, Tensor u) {
  const char* op = "gelu_backward";
  STD_TORCH_CHECK(u.dim() == 2, op, ": `u` must be (M, F), got ", u.dim(), " dimensions");
  const int64_t m = u.size(0), f = u.size(1), chunks = chunk_count(m, kCpuChunk);
  const auto type = u.scalar_type();
  const Dtype dtype = dtype_of(u, op);
  check_dense(u, {m, f}, type, op, "u");
  check_dense(dy, {m, f}, type, op, "dy");
  Tensor du = empty(u, {m, f}), dbias = empty(u, {f}), partial = empty_f32(u, {1, chunks, 1, f});
  parallel(chunks, 1, GeluBackward{dy.const_data_ptr(), u.const_data_ptr(), du.mutable_data_ptr(),
                                   partial.mutable_data_ptr<float>(), m, f, dtype}, gelu_backward);
  parallel(1, 1, TokenSums{partial.const_data_ptr<float>(), {dbias.mutable_data_ptr()}, 1, 1, chunks, f, dtype},
           finish_token_sums);
  return {du, dbias};
}

}  // namespace
}  // namespace dit

STABLE_TORCH_LIBRARY_FRAGMENT(dit_fast_native, m) {
  m.def("linear(Tensor x, Tensor weight, Tensor? bias, bool gelu, bool keep) -> (Tensor y, Tensor u)");
  m.def("linear_input_gradient(Tensor dy, Tensor weight) -> Tensor dx");
  m.def("linear_hidden_gradient(Tensor dy, Tensor weight, Tensor u) -> (Tensor du, Tensor y, Tensor dbias)");
  m.def("gelu_backward(Tensor dy, Tensor u) -> (Tensor du, Tensor dbias)");
}

STABLE_TORCH_LIBRARY_IMPL(dit_fast_native, CPU, m) {
  m.impl("linear", TORCH_BOX(&dit::forward));
  m.impl("linear_input_gradient", TORCH_BOX(&dit::input_gradient));
  m.impl("linear_hidden_gradient", TORCH_BOX(&dit::hidden_gradient));
  m.impl("gelu_backward", TORCH_BOX(&dit::gelu_gradient));
}
