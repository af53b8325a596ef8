// SPDX-License-Identifier: Apache-2.0
// final_layer: schema, checks and CPU launch. Formulas in final_layer_cpu.cpp and dit_fast/ops/final_layer/autograd.py.
#include "ops/final_layer/final_layer.h"

#include <optional>

#include "common/token_sums.h"
#include "common/stable.h"

namespace dit {
namespace {

using MaybeTensor = std::optional<Tensor>;

struct Modulation {
  bool given = false;
  const void *shift = nullptr, *scale = nullptr;
  int64_t shift_stride = 0, scale_stride = 0;
};

Modulation check_modulation(const Tensor& x, const MaybeTensor& shift, const MaybeTensor& scale, const char* op) {
  STD_TORCH_CHECK(shift.has_value() == scale.has_value(), op, ": `shift` and `scale` must both be given or both None");
  if (!scale) return {};
  const int64_t n = x.size(0), d = x.size(2);
  const int64_t shift_stride = check_rows(*shift, n, d, x.scalar_type(), op, "shift");
  const int64_t scale_stride = check_rows(*scale, n, d, x.scalar_type(), op, "scale");
  return {true, shift->const_data_ptr(), scale->const_data_ptr(), shift_stride, scale_stride};
}

PatchGrid check_layout(const Tensor& x, const Tensor& weight, int64_t height, int64_t width, int64_t patch,
                       const char* op) {
  STD_TORCH_CHECK(x.dim() == 3, op, ": `x` must be (N, T, D), got ", x.dim(), " dimensions");
  STD_TORCH_CHECK(height >= 0 && width >= 0 && height * width == x.size(1), op, ": `height` * `width` must be ",
                  x.size(1), ", got ", height, " and ", width);
  STD_TORCH_CHECK(weight.dim() == 2, op, ": `weight` must be (p*p*C, D), got ", weight.dim(), " dimensions");
  STD_TORCH_CHECK(patch > 0 && weight.size(0) > 0 && weight.size(0) % (patch * patch) == 0, op,
                  ": `patch` squared must divide ", weight.size(0), ", got ", patch);
  check_dense(x, {x.size(0), x.size(1), x.size(2)}, x.scalar_type(), op, "x");
  check_dense(weight, {weight.size(0), x.size(2)}, x.scalar_type(), op, "weight");
  return {weight.size(0) / (patch * patch), height, width, patch};
}

// The (rows, cols) matrix at weight[row * row_step + col * col_step] as panels.
Tensor panels_of(const Tensor& weight, int64_t rows, int64_t cols, int64_t row_step, int64_t col_step, Dtype dtype) {
  Tensor out = empty_f32(weight, {panels_size(rows, cols)});
  const Panels args{weight.const_data_ptr(), out.mutable_data_ptr<float>(), rows, cols, row_step, col_step, dtype};
  parallel((cols + kPanelPadding - 1) / kPanelPadding, 4, args, pack_panels);
  return out;
}

std::tuple<Tensor, Tensor, Tensor> forward(const Tensor& x, const MaybeTensor& shift, const MaybeTensor& scale,
                                           const Tensor& weight, const Tensor& bias, int64_t height, int64_t width,
                                           int64_t patch, double eps) {
  const char* op = "final_layer";
  const PatchGrid grid = check_layout(x, weight, height, width, patch, op);
  const Modulation m = check_modulation(x, shift, scale, op);
  const int64_t n = x.size(0), t = x.size(1), d = x.size(2), features = grid.pixels();
  check_dense(bias, {features}, x.scalar_type(), op, "bias");
  const Dtype dtype = dtype_of(x, op);
  const std::vector<int64_t> stats = m.given ? std::vector<int64_t>{n, t} : std::vector<int64_t>{0};
  Tensor out = empty(x, {n, grid.channels, height * patch, width * patch});
  Tensor mean = empty_f32(x, stats), rstd = empty_f32(x, stats);
  const Tensor panels = panels_of(weight, d, features, 1, d, dtype);
  const FinalLayerForward args{x.const_data_ptr(), m.shift, m.scale, bias.const_data_ptr(),
                               panels.const_data_ptr<float>(), out.mutable_data_ptr(), mean.mutable_data_ptr<float>(),
                               rstd.mutable_data_ptr<float>(), n * t, d, m.shift_stride, m.scale_stride, float(eps),
                               grid, dtype};
  parallel(tile_count(n * t), 4, args, final_layer_forward);
  return {out, mean, rstd};
}

// At most 32 groups, so that their partial sums stay small beside x, and at least 96 tokens in each.
int64_t group_count(int64_t pieces, int64_t tokens) {
  return std::min({pieces, (tokens + 2 * kFinalPiece - 1) / (2 * kFinalPiece), int64_t(32)});
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> backward(const Tensor& dout, const Tensor& x,
                                                            const MaybeTensor& shift, const MaybeTensor& scale,
                                                            const Tensor& weight, const Tensor& mean,
                                                            const Tensor& rstd, int64_t height, int64_t width,
                                                            int64_t patch) {
  const char* op = "final_layer_backward";
  const PatchGrid grid = check_layout(x, weight, height, width, patch, op);
  const Modulation m = check_modulation(x, shift, scale, op);
  const int64_t n = x.size(0), t = x.size(1), d = x.size(2), features = grid.pixels();
  check_dense(dout, {n, grid.channels, height * patch, width * patch}, x.scalar_type(), op, "dout");
  if (m.given) check_dense(mean, {n, t}, ScalarType::Float, op, "mean");
  if (m.given) check_dense(rstd, {n, t}, ScalarType::Float, op, "rstd");
  const Dtype dtype = dtype_of(x, op);
  const int64_t pieces = (t + kFinalPiece - 1) / kFinalPiece, groups = group_count(n * pieces, n * t);
  const std::vector<int64_t> rows = m.given ? std::vector<int64_t>{n, d} : std::vector<int64_t>{0};
  Tensor dx = empty(x, {n, t, d}), dshift = empty(x, rows), dscale = empty(x, rows);
  Tensor dweight = empty(x, {features, d}), dbias = empty(x, {features});
  Tensor token_sums = empty_f32(x, {m.given ? n * pieces * 2 * d : 0});
  Tensor weight_sums = empty_f32(x, {features, groups, d}), bias_sums = empty_f32(x, {groups, features});
  const Tensor panels = panels_of(weight, features, d, d, 1, dtype);
  const FinalLayerBackward args{dout.const_data_ptr(), x.const_data_ptr(), m.shift, m.scale,
                                panels.const_data_ptr<float>(), mean.const_data_ptr<float>(),
                                rstd.const_data_ptr<float>(), dx.mutable_data_ptr(),
                                token_sums.mutable_data_ptr<float>(), weight_sums.mutable_data_ptr<float>(),
                                bias_sums.mutable_data_ptr<float>(), n, d, m.shift_stride, m.scale_stride, pieces,
                                groups, grid, dtype};
  parallel(groups, 1, args, final_layer_backward);
  if (m.given) {
    const TokenSums sums{token_sums.const_data_ptr<float>(),
                         {dshift.mutable_data_ptr(), dscale.mutable_data_ptr()}, n, 2, pieces, d, dtype};
    parallel(n, 1, sums, finish_token_sums);
  }
  const TokenSums weights{weight_sums.const_data_ptr<float>(), {dweight.mutable_data_ptr()}, features, 1, groups, d,
                          dtype};
  parallel(features, 1, weights, finish_token_sums);
  const TokenSums biases{bias_sums.const_data_ptr<float>(), {dbias.mutable_data_ptr()}, 1, 1, groups, features,
                         dtype};
  parallel(1, 1, biases, finish_token_sums);
  return {dx, dshift, dscale, dweight, dbias};
}

}  // namespace
}  // namespace dit

STABLE_TORCH_LIBRARY_FRAGMENT(dit_fast_native, m) {
  m.def(
      "final_layer(Tensor x, Tensor? shift, Tensor? scale, Tensor weight, Tensor bias, int height, int width,"
      " int patch, float eps) -> (Tensor, Tensor, Tensor)");
  m.def(
      "final_layer_backward(Tensor dout, Tensor x, Tensor? shift, Tensor? scale, Tensor weight, Tensor mean,"
      " Tensor rstd, int height, int width, int patch) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(dit_fast_native, CPU, m) {
  m.impl("final_layer", TORCH_BOX(&dit::forward));
  m.impl("final_layer_backward", TORCH_BOX(&dit::backward));
}
