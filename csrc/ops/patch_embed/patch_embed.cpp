// SPDX-License-Identifier: Apache-2.0
// patch_embed: schema, checks and CPU launch. Formulas in patch_embed_cpu.cpp and dit_fast/ops/patch_embed/autograd.py.
#include "ops/patch_embed/patch_embed.h"

#include <optional>

#include "common/stable.h"

namespace dit {
namespace {

struct Problem {
  PatchGrid grid;
  int64_t batch, dim;
  int64_t tokens() const { return batch * grid.tokens(); }
};

Problem check_image(const Tensor& x, const Tensor& weight, const char* op) {
  STD_TORCH_CHECK(x.dim() == 4, op, ": `x` must be (N, C, H, W), got ", x.dim(), " dimensions");
  STD_TORCH_CHECK(weight.dim() == 4, op, ": `weight` must be (D, C, p, p), got ", weight.dim(), " dimensions");
  const int64_t n = x.size(0), c = x.size(1), h = x.size(2), w = x.size(3), d = weight.size(0), p = weight.size(2);
  STD_TORCH_CHECK(p > 0 && h > 0 && w > 0 && h % p == 0 && w % p == 0, op,
                  ": `x` must have a height and width in positive multiples of ", p, ", got ", h, " and ", w);
  check_dense(x, {n, c, h, w}, x.scalar_type(), op, "x");
  check_dense(weight, {d, c, p, p}, x.scalar_type(), op, "weight");
  return {{c, h / p, w / p, p}, n, d};
}

// weight (D, K) or its transpose as panels. The tensor must outlive the kernel that reads it.
Tensor panels_of(const Tensor& weight, bool transposed, const char* op) {
  const int64_t d = weight.size(0), k = weight.size(1) * weight.size(2) * weight.size(3);
  const int64_t rows = transposed ? k : d, cols = transposed ? d : k;
  Tensor out = empty_f32(weight, {panels_size(rows, cols)});
  const Panels args{weight.const_data_ptr(), out.mutable_data_ptr<float>(), rows, cols, transposed ? 1 : k,
                    transposed ? k : 1, dtype_of(weight, op)};
  parallel((cols + kPanelPadding - 1) / kPanelPadding, 4, args, pack_panels);
  return out;
}

Tensor forward(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, const Tensor& pos) {
  const char* op = "patch_embed";
  const Problem problem = check_image(x, weight, op);
  const int64_t d = problem.dim, tokens = problem.tokens();
  const auto type = x.scalar_type();
  if (bias) check_dense(*bias, {d}, type, op, "bias");
  check_dense(pos, {problem.grid.tokens(), d}, type, op, "pos");
  Tensor out = empty(x, {problem.batch, problem.grid.tokens(), d});
  const Tensor panels = panels_of(weight, true, op);
  const PatchEmbedForward args{x.const_data_ptr(), bias ? bias->const_data_ptr() : nullptr, pos.const_data_ptr(),
                               panels.const_data_ptr<float>(), out.mutable_data_ptr(), tokens, d, problem.grid,
                               dtype_of(x, op)};
  parallel(tile_count(tokens), 4, args, patch_embed_forward);
  return out;
}

// At most 32 chunks, so that their partial sums stay small beside x and dout, and at least 128 tokens in each.
int64_t chunk_tokens(int64_t tokens) {
  const int64_t blocks = (tokens + kPatchBlock - 1) / kPatchBlock;
  return kPatchBlock * std::max<int64_t>(2, (blocks + 31) / 32);
}

void weight_gradient(const Problem& problem, const Tensor& dout, const Tensor& x, void* dweight, void* dbias,
                     Dtype dtype) {
  const int64_t d = problem.dim, k = problem.grid.pixels(), tokens = problem.tokens(), chunk = chunk_tokens(tokens);
  const int64_t chunks = (tokens + chunk - 1) / chunk;
  Tensor partial = empty_f32(x, {chunks, k + 1, d});
  const PatchEmbedWeightGrad args{dout.const_data_ptr(), x.const_data_ptr(), partial.mutable_data_ptr<float>(),
                                  tokens, d, chunk, problem.grid, dtype};
  parallel(chunks, 1, args, patch_embed_weight_grad);
  const PatchEmbedWeightSum sums{partial.const_data_ptr<float>(), dweight, dbias, chunks, d, k, dtype};
  parallel((d + kPanelPadding - 1) / kPanelPadding, 1, sums, patch_embed_weight_sum);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> backward(const Tensor& dout, const Tensor& x, const Tensor& weight,
                                                    const std::vector<bool>& needed) {
  const char* op = "patch_embed_backward";
  const Problem problem = check_image(x, weight, op);
  const int64_t d = problem.dim, n = problem.batch, t = problem.grid.tokens(), p = problem.grid.patch;
  check_dense(dout, {n, t, d}, x.scalar_type(), op, "dout");
  STD_TORCH_CHECK(needed.size() == 4, op, ": `needed` must have 4 elements, got ", needed.size());
  const auto make = [&](size_t i, std::vector<int64_t> sizes) {
    return empty(x, needed[i] ? sizes : std::vector<int64_t>{0});
  };
  Tensor dx = make(0, {n, x.size(1), x.size(2), x.size(3)}), dweight = make(1, {d, x.size(1), p, p});
  Tensor dbias = make(2, {d}), dpos = make(3, {t, d});
  const Dtype dtype = dtype_of(x, op);
  if (needed[0]) {
    const Tensor panels = panels_of(weight, false, op);
    const PatchEmbedImageGrad args{dout.const_data_ptr(), panels.const_data_ptr<float>(), dx.mutable_data_ptr(),
                                   problem.tokens(), d, problem.grid, dtype};
    parallel(tile_count(args.tokens), 4, args, patch_embed_image_grad);
  }
  if (needed[1] || needed[2])
    weight_gradient(problem, dout, x, needed[1] ? dweight.mutable_data_ptr() : nullptr,
                    needed[2] ? dbias.mutable_data_ptr() : nullptr, dtype);
  if (needed[3]) {
    const PatchEmbedPosGrad args{dout.const_data_ptr(), dpos.mutable_data_ptr(), n, t, d, dtype};
    parallel(t, 4, args, patch_embed_pos_grad);
  }
  return {dx, dweight, dbias, dpos};
}

}  // namespace
}  // namespace dit

STABLE_TORCH_LIBRARY_FRAGMENT(dit_fast_native, m) {
  m.def("patch_embed(Tensor x, Tensor weight, Tensor? bias, Tensor pos) -> Tensor");
  m.def(
      "patch_embed_backward(Tensor dout, Tensor x, Tensor weight, bool[] needed)"
      " -> (Tensor, Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(dit_fast_native, CPU, m) {
  m.impl("patch_embed", TORCH_BOX(&dit::forward));
  m.impl("patch_embed_backward", TORCH_BOX(&dit::backward));
}
