// SPDX-License-Identifier: Apache-2.0
// Branches of transformer blocks, each with the op that ends it, in one call on the CPU: what linear, attention,
// linear_gelu and gated_residual_adaln compute one after the other, by the same kernels. For every branch in turn
//   x = x + gate * branch(h),   h = LN(x) * (1 + scale) + shift
// where branch(h) is proj(attention(qkv(h))) or fc2(gelu(fc1(h))). dit_fast/ops/branches.py says what for.
#include "common/stable.h"
#include "ops/attention/forward.h"
#include "ops/gated_residual_adaln/forward.h"
#include "ops/linear_gelu/forward.h"

namespace dit {
namespace {

Tensor linear(const Tensor& x, const Tensor& weight, const Tensor& bias, bool gelu = false) {
  return std::get<0>(linear_forward(x, weight, bias, gelu, false));
}

Tensor attention(const Tensor& h, const Tensor& weight, const Tensor& bias, int64_t heads, const char* op) {
  STD_TORCH_CHECK(h.dim() == 3, op, ": `h` must be (N, T, D), got ", h.dim(), " dimensions");
  const int64_t n = h.size(0), t = h.size(1), d = h.size(2);
  STD_TORCH_CHECK(heads > 0 && d % heads == 0, op, ": `heads` must divide D = ", d, ", got ", heads);
  check_dense(weight, {3 * d, d}, h.scalar_type(), op, "qkv's weight");
  return self_attention_forward(torch::stable::view(linear(h, weight, bias), {n, t, 3, heads, d / heads}));
}

// Of each branch: `layers` has weight and bias of its two linear layers, `rows` gate, shift and scale (N, D), `heads`
// the heads of its attention, 0 where it has a GELU.
std::tuple<Tensor, Tensor> branches(Tensor x, Tensor h, std::vector<Tensor> layers, std::vector<Tensor> rows,
                                    std::vector<int64_t> heads, std::vector<double> eps) {
  const char* op = "branches";
  const size_t count = heads.size();
  STD_TORCH_CHECK(layers.size() == 4 * count && rows.size() == 3 * count && eps.size() == count, op, ": ", count,
                  " branches need 4 `layers`, 3 `rows` and 1 `eps` each, got ", layers.size(), ", ", rows.size(), ", ",
                  eps.size());
  for (size_t i = 0; i < count; ++i) {
    const Tensor *layer = &layers[4 * i], *row = &rows[3 * i];
    const Tensor inner = heads[i] == 0 ? linear(h, layer[0], layer[1], true)
                                       : attention(h, layer[0], layer[1], heads[i], op);
    const Tensor y = linear(inner, layer[2], layer[3]);
    auto [x_new, h_new, mean, rstd] = gated_residual_adaln_forward_cpu(x, y, row[0], row[1], row[2], eps[i]);
    x = x_new;
    h = h_new;
  }
  return {x, h};
}

}  // namespace
}  // namespace dit

STABLE_TORCH_LIBRARY_FRAGMENT(dit_fast_native, m) {
  m.def(
      "branches(Tensor x, Tensor h, Tensor[] layers, Tensor[] rows, int[] heads, float[] eps)"
      " -> (Tensor x_new, Tensor h_new)");
}

STABLE_TORCH_LIBRARY_IMPL(dit_fast_native, CPU, m) {
  m.impl("branches", TORCH_BOX(&dit::branches));
}
