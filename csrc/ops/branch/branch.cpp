// SPDX-License-Identifier: Apache-2.0
// A branch of a transformer block and the op that ends it, in one call on the CPU: what linear, attention, linear_gelu
// and gated_residual_adaln compute one after the other, by the same kernels. dit_fast/ops/branch.py says what for.
//   x_new = x + gate * branch(h),   h_new = LN(x_new) * (1 + scale) + shift
#include <optional>

#include "common/stable.h"
#include "ops/attention/forward.h"
#include "ops/gated_residual_adaln/forward.h"
#include "ops/linear_gelu/forward.h"

namespace dit {
namespace {

using MaybeTensor = std::optional<Tensor>;

Tensor linear(const Tensor& x, const Tensor& weight, const MaybeTensor& bias, bool gelu = false) {
  return std::get<0>(linear_forward(x, weight, bias, gelu, false));
}

std::tuple<Tensor, Tensor> end(const Tensor& x, const Tensor& y, const Tensor& gate, const Tensor& shift,
                               const Tensor& scale, double eps) {
  const auto [x_new, h, mean, rstd] = gated_residual_adaln_forward_cpu(x, y, gate, shift, scale, eps);
  return {x_new, h};
}

std::tuple<Tensor, Tensor> attention_branch(Tensor x, Tensor h, Tensor qkv_weight, MaybeTensor qkv_bias, Tensor weight,
                                            MaybeTensor bias, int64_t heads, Tensor gate, Tensor shift, Tensor scale,
                                            double eps) {
  const char* op = "attention_branch";
  STD_TORCH_CHECK(h.dim() == 3, op, ": `h` must be (N, T, D), got ", h.dim(), " dimensions");
  const int64_t n = h.size(0), t = h.size(1), d = h.size(2);
  STD_TORCH_CHECK(heads > 0 && d % heads == 0, op, ": `heads` must divide D = ", d, ", got ", heads);
  check_dense(qkv_weight, {3 * d, d}, h.scalar_type(), op, "qkv_weight");
  const Tensor qkv = torch::stable::view(linear(h, qkv_weight, qkv_bias), {n, t, 3, heads, d / heads});
  return end(x, linear(self_attention_forward(qkv), weight, bias), gate, shift, scale, eps);
}

std::tuple<Tensor, Tensor> mlp_branch(Tensor x, Tensor h, Tensor weight1, MaybeTensor bias1, Tensor weight2,
                                      MaybeTensor bias2, Tensor gate, Tensor shift, Tensor scale, double eps) {
  return end(x, linear(linear(h, weight1, bias1, true), weight2, bias2), gate, shift, scale, eps);
}

}  // namespace
}  // namespace dit

STABLE_TORCH_LIBRARY_FRAGMENT(dit_fast_native, m) {
  m.def(
      "attention_branch(Tensor x, Tensor h, Tensor qkv_weight, Tensor? qkv_bias, Tensor weight, Tensor? bias, int heads,"
      " Tensor gate, Tensor shift, Tensor scale, float eps) -> (Tensor x_new, Tensor h_new)");
  m.def(
      "mlp_branch(Tensor x, Tensor h, Tensor weight1, Tensor? bias1, Tensor weight2, Tensor? bias2,"
      " Tensor gate, Tensor shift, Tensor scale, float eps) -> (Tensor x_new, Tensor h_new)");
}

STABLE_TORCH_LIBRARY_IMPL(dit_fast_native, CPU, m) {
  m.impl("attention_branch", TORCH_BOX(&dit::attention_branch));
  m.impl("mlp_branch", TORCH_BOX(&dit::mlp_branch));
}
