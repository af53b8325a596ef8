// SPDX-License-Identifier: Apache-2.0
// final_layer: schema, checks and launches. Formulas in final_layer_cpu.cpp, final_layer.cuh, final_layer_backward.cuh
// and dit_fast/ops/final_layer/autograd.py.
#include "ops/final_layer/final_layer.h"

#include <optional>

#include "common/cpu/panels_of.h"
#include "common/device.h"

namespace dit {
namespace {

using MaybeTensor = std::optional<Tensor>;

// How the backward cuts the tokens; see FinalLayerBackward.
struct Cut {
  int64_t piece, pieces, group_tokens, groups;
};

#if !defined(DIT_HOST_EXEC)
inline Tensor forward_weight(const Cpu&, const Tensor& weight, Dtype dtype) {
  return panels_of(weight, weight.size(1), weight.size(0), 1, weight.size(1), dtype);
}
inline Tensor backward_weight(const Cpu&, const Tensor& weight, Dtype dtype) {
  return panels_of(weight, weight.size(0), weight.size(1), weight.size(1), 1, dtype);
}

// At most 32 groups, so that their partial sums stay small beside x, and at least 96 tokens in each.
inline Cut cut(const Cpu&, int64_t n, int64_t t, int64_t, int64_t, Dtype) {
  const int64_t pieces = chunk_count(t, kFinalPiece);
  return {kFinalPiece, pieces, 0, std::min({n * pieces, chunk_count(n * t, 2 * kFinalPiece), int64_t(32)})};
}

inline void check_size(const Cpu&, int64_t, const PatchGrid&, const char*) {}

inline void run(const Cpu&, const FinalLayerForward& a) {
  parallel(tile_count(a.batch * a.grid.tokens()), 4, a, final_layer_forward);
}
inline void run(const Cpu&, const FinalLayerBackward& a) { parallel(a.groups, 1, a, final_layer_backward); }
#endif

inline Tensor forward_weight(const Cuda&, const Tensor& weight, Dtype) { return weight; }
inline Tensor backward_weight(const Cuda& cuda, const Tensor& weight, Dtype dtype) {
  const int64_t features = weight.size(0), dim = weight.size(1);
  Tensor out = empty(weight, {dim, (features + 31) / 32 * 32});
  cuda.check(final_layer_transpose_cuda({weight.const_data_ptr(), out.mutable_data_ptr(), features, dim, dtype},
                                        cuda.stream()));
  return out;
}

inline Cut cut(const Cuda& cuda, int64_t n, int64_t t, int64_t d, int64_t features, Dtype dtype) {
  const int64_t piece = cuda.chunk_tokens(n, t), group = final_layer_group_tokens_cuda(n * t, d, features, dtype);
  return {piece, chunk_count(t, piece), group, chunk_count(n * t, group)};
}

// The kernels count tokens, and pixels within an image, in 32 bits.
inline void check_size(const Cuda&, int64_t n, const PatchGrid& grid, const char* op) {
  constexpr int64_t kMost = (int64_t(1) << 31) - 4096;
  STD_TORCH_CHECK(n * grid.tokens() < kMost && grid.tokens() * grid.pixels() < kMost, op,
                  ": CUDA takes at most 2^31 tokens and 2^31 pixels of an image, got ", n * grid.tokens(), " and ",
                  grid.tokens() * grid.pixels());
}

inline void run(const Cuda& cuda, const FinalLayerForward& a) {
  cuda.check(final_layer_forward_cuda(a, cuda.stream()));
}
inline void run(const Cuda& cuda, const FinalLayerBackward& a) {
  cuda.check(final_layer_backward_cuda(a, cuda.stream()));
}

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

template <class Device>
std::tuple<Tensor, Tensor, Tensor> forward(Tensor x, MaybeTensor shift, MaybeTensor scale, Tensor weight, Tensor bias,
                                           int64_t height, int64_t width, int64_t patch, double eps) {
  const char* op = "final_layer";
  const PatchGrid grid = check_layout(x, weight, height, width, patch, op);
  const Device device(x, op);
  check_size(device, x.size(0), grid, op);
  device.align({&x, &weight});
  if (shift) device.align({&*shift});
  if (scale) device.align({&*scale});
  const Modulation m = check_modulation(x, shift, scale, op);
  const int64_t n = x.size(0), t = x.size(1), d = x.size(2), features = grid.pixels();
  check_dense(bias, {features}, x.scalar_type(), op, "bias");
  const Dtype dtype = dtype_of(x, op);
  const std::vector<int64_t> stats = m.given ? std::vector<int64_t>{n, t} : std::vector<int64_t>{0};
  Tensor out = empty(x, {n, grid.channels, height * patch, width * patch});
  Tensor mean = empty_f32(x, stats), rstd = empty_f32(x, stats);
  const Tensor prepared = forward_weight(device, weight, dtype);
  run(device, FinalLayerForward{x.const_data_ptr(), m.shift, m.scale, bias.const_data_ptr(), prepared.const_data_ptr(),
                                out.mutable_data_ptr(), mean.mutable_data_ptr<float>(), rstd.mutable_data_ptr<float>(),
                                n, d, m.shift_stride, m.scale_stride, float(eps), grid, dtype});
  return {out, mean, rstd};
}

template <class Device>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> backward(Tensor dout, Tensor x, MaybeTensor shift, MaybeTensor scale,
                                                            Tensor weight, Tensor mean, Tensor rstd, int64_t height,
                                                            int64_t width, int64_t patch) {
  const char* op = "final_layer_backward";
  const PatchGrid grid = check_layout(x, weight, height, width, patch, op);
  const Device device(x, op);
  check_size(device, x.size(0), grid, op);
  device.align({&x, &weight});
  if (shift) device.align({&*shift});
  if (scale) device.align({&*scale});
  const Modulation m = check_modulation(x, shift, scale, op);
  const int64_t n = x.size(0), t = x.size(1), d = x.size(2), features = grid.pixels();
  check_dense(dout, {n, grid.channels, height * patch, width * patch}, x.scalar_type(), op, "dout");
  if (m.given) check_dense(mean, {n, t}, ScalarType::Float, op, "mean");
  if (m.given) check_dense(rstd, {n, t}, ScalarType::Float, op, "rstd");
  const Dtype dtype = dtype_of(x, op);
  const Cut c = cut(device, n, t, d, features, dtype);
  const std::vector<int64_t> rows = m.given ? std::vector<int64_t>{n, d} : std::vector<int64_t>{0};
  Tensor dx = empty(x, {n, t, d}), dshift = empty(x, rows), dscale = empty(x, rows);
  Tensor dweight = empty(x, {features, d}), dbias = empty(x, {features});
  Tensor token_sums = empty_f32(x, {m.given ? n * c.pieces * 2 * d : 0});
  Tensor weight_sums = empty_f32(x, {features, c.groups, d}), bias_sums = empty_f32(x, {c.groups, features});
  const Tensor prepared = backward_weight(device, weight, dtype);
  run(device, FinalLayerBackward{dout.const_data_ptr(), x.const_data_ptr(), m.shift, m.scale, prepared.const_data_ptr(),
                                 mean.const_data_ptr<float>(), rstd.const_data_ptr<float>(), dx.mutable_data_ptr(),
                                 token_sums.mutable_data_ptr<float>(), weight_sums.mutable_data_ptr<float>(),
                                 bias_sums.mutable_data_ptr<float>(), n, d, m.shift_stride, m.scale_stride, c.piece,
                                 c.pieces, c.group_tokens, c.groups, grid, dtype});
  if (m.given)
    run(device, TokenSums{token_sums.const_data_ptr<float>(), {dshift.mutable_data_ptr(), dscale.mutable_data_ptr()},
                          n, 2, c.pieces, d, dtype});
  run(device, TokenSums{weight_sums.const_data_ptr<float>(), {dweight.mutable_data_ptr()}, features, 1, c.groups, d,
                        dtype});
  run(device, TokenSums{bias_sums.const_data_ptr<float>(), {dbias.mutable_data_ptr()}, 1, 1, c.groups, features,
                        dtype});
  return {dx, dshift, dscale, dweight, dbias};
}

template <class Device>
void implement(Registry& m) {
  m.impl("final_layer", TORCH_BOX(&forward<Device>));
  m.impl("final_layer_backward", TORCH_BOX(&backward<Device>));
}

}  // namespace
}  // namespace dit

STABLE_TORCH_LIBRARY_FRAGMENT(DIT_LIBRARY, m) {
  m.def(
      "final_layer(Tensor x, Tensor? shift, Tensor? scale, Tensor weight, Tensor bias, int height, int width,"
      " int patch, float eps) -> (Tensor, Tensor, Tensor)");
  m.def(
      "final_layer_backward(Tensor dout, Tensor x, Tensor? shift, Tensor? scale, Tensor weight, Tensor mean,"
      " Tensor rstd, int height, int width, int patch) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
}

DIT_IMPLEMENT(dit::implement)
