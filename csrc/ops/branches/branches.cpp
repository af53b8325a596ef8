// SPDX-License-Identifier: Apache-2.0
// Branches of transformer blocks, each with the op that ends it, in one call on the CPU: what linear, attention,
// linear_gelu and gated_residual_adaln compute one after the other, by the same kernels. For every branch in turn
//   x = x + gate * branch(h),   h = LN(x) * (1 + scale) + shift
// where branch(h) is proj(attention(qkv(h))) or fc2(gelu(fc1(h))). dit_fast/ops/branches.py says what for.
//
// What is between the kernels lies in the same memory for all branches, and from the second on x and h are updated in
// place: they are in cache already, and the system need not find pages for them again and again.
#include "common/stable.h"
#include "ops/attention/forward.h"
#include "ops/gated_residual_adaln/forward.h"
#include "ops/linear_gelu/forward.h"

namespace dit {
namespace {

struct Branch {
  const Tensor *layers, *rows;  // weight, bias, weight, bias; gate, shift, scale (N, D)
  int64_t heads;                // of its attention; 0 where it has a GELU
  double eps;
};

// Checks a branch of tokens (N, T, D); returns the width of what is between its linear layers, or their attention.
int64_t check(const Branch& b, const Tensor& x, const char* op) {
  const int64_t n = x.size(0), d = x.size(2);
  const auto type = x.scalar_type();
  STD_TORCH_CHECK(b.heads >= 0 && (b.heads == 0 || d % b.heads == 0), op, ": `heads` must divide D = ", d, ", got ",
                  b.heads);
  STD_TORCH_CHECK(b.layers[0].dim() == 2, op, ": weights must have 2 dimensions, got ", b.layers[0].dim());
  const int64_t f = b.heads ? 3 * d : b.layers[0].size(0), inner = b.heads ? d : f;
  check_dense(b.layers[0], {f, d}, type, op, "first weight");
  check_dense(b.layers[1], {f}, type, op, "first bias");
  check_dense(b.layers[2], {d, inner}, type, op, "second weight");
  check_dense(b.layers[3], {d}, type, op, "second bias");
  for (int i = 0; i < 3; ++i) check_rows(b.rows[i], n, d, type, op, "gate, shift or scale");
  return f;
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
  STD_TORCH_CHECK(x.dim() == 3, op, ": `x` must be (N, T, D), got ", x.dim(), " dimensions");
  const int64_t n = x.size(0), t = x.size(1), d = x.size(2), m = n * t;
  const Dtype dtype = dtype_of(x, op);
  check_dense(x, {n, t, d}, x.scalar_type(), op, "x");
  check_dense(h, {n, t, d}, x.scalar_type(), op, "h");
  if (count == 0 || m * d == 0) return {x, h};

  std::vector<Branch> given;
  int64_t width = 0, most_heads = 0;
  for (size_t i = 0; i < count; ++i) {
    given.push_back({&layers[4 * i], &rows[3 * i], heads[i], eps[i]});
    width = std::max(width, check(given[i], x, op));
    most_heads = std::max(most_heads, heads[i]);
  }
  Tensor x_new = empty(x, {n, t, d}), h_new = empty(x, {n, t, d});
  Tensor first = empty(x, {m, width}), attended = empty(x, {most_heads ? m : 0, d}), second = empty(x, {m, d});
  Tensor lse = empty_f32(x, {most_heads, m}), mean = empty_f32(x, {m}), rstd = empty_f32(x, {m});
  const void *x_now = x.const_data_ptr(), *h_now = h.const_data_ptr();
  for (const Branch& b : given) {
    const auto linear = [&](const void* from, int layer, void* to, Epilogue epilogue) {
      const Tensor &weight = b.layers[layer], &bias = b.layers[layer + 1];
      const int64_t f = weight.size(0), k = weight.size(1);
      run(Linear{from, weight.const_data_ptr(), bias.const_data_ptr(), to, nullptr, m, k, f, 1, k, epilogue, dtype});
    };
    linear(h_now, 0, first.mutable_data_ptr(), b.heads ? Epilogue::none : Epilogue::gelu);
    if (b.heads)
      self_attention(first.const_data_ptr(), attended.mutable_data_ptr(), lse.mutable_data_ptr<float>(), n, t, b.heads,
                     d / b.heads, dtype);
    linear((b.heads ? attended : first).const_data_ptr(), 2, second.mutable_data_ptr(), Epilogue::none);
    const Tensor &gate = b.rows[0], &shift = b.rows[1], &scale = b.rows[2];
    run(GatedResidualAdalnForward{x_now, second.const_data_ptr(), gate.const_data_ptr(), shift.const_data_ptr(),
                                  scale.const_data_ptr(), x_new.mutable_data_ptr(), h_new.mutable_data_ptr(),
                                  mean.mutable_data_ptr<float>(), rstd.mutable_data_ptr<float>(), n, t, d,
                                  gate.stride(0), shift.stride(0), scale.stride(0), float(b.eps), dtype});
    x_now = x_new.const_data_ptr();
    h_now = h_new.const_data_ptr();
  }
  return {x_new, h_new};
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
