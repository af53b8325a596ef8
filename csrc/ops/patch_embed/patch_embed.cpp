// SPDX-License-Identifier: Apache-2.0
// patch_embed: schema, checks and launches. Formulas in patch_embed_cpu.cpp, patch_embed.cuh and
// dit_fast/ops/patch_embed/autograd.py.
#include "ops/patch_embed/patch_embed.h"

#include <optional>

#include "common/cpu/panels_of.h"
#include "common/device.h"

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

// Where dweight and dbias go; either may be null.
struct WeightGradients {
  void *dweight, *dbias;
};

#if !defined(DIT_HOST_EXEC)
// weight (D, K) or its transpose.
Tensor weight_panels(const Tensor& weight, bool transposed, const char* op) {
  const int64_t d = weight.size(0), k = weight.size(1) * weight.size(2) * weight.size(3);
  const Dtype dtype = dtype_of(weight, op);
  return transposed ? panels_of(weight, k, d, 1, k, dtype) : panels_of(weight, d, k, k, 1, dtype);
}

inline void run(const Cpu&, PatchEmbedForward a, const Tensor& weight, const char* op) {
  const Tensor panels = weight_panels(weight, true, op);
  a.panels = panels.const_data_ptr<float>();
  parallel(tile_count(a.tokens), 4, a, patch_embed_forward);
}

inline void run(const Cpu&, PatchEmbedImageGrad a, const Tensor& weight, const char* op) {
  const Tensor panels = weight_panels(weight, false, op);
  a.panels = panels.const_data_ptr<float>();
  parallel(tile_count(a.tokens), 4, a, patch_embed_image_grad);
}

// At most 32 chunks, so that their partial sums stay small beside x and dout, and at least 128 tokens in each.
inline void run(const Cpu&, PatchEmbedWeightGrad a, const Tensor& x, const WeightGradients& out) {
  const int64_t blocks = (a.tokens + kPatchBlock - 1) / kPatchBlock;
  a.chunk = kPatchBlock * std::max<int64_t>(2, (blocks + 31) / 32);
  const int64_t chunks = chunk_count(a.tokens, a.chunk), pixels = a.grid.pixels();
  Tensor partial = empty_f32(x, {chunks, pixels + 1, a.dim});
  a.partial = partial.mutable_data_ptr<float>();
  parallel(chunks, 1, a, patch_embed_weight_grad);
  const PatchEmbedWeightSum sums{a.partial, out.dweight, out.dbias, chunks, a.dim, pixels, a.dtype};
  parallel((a.dim + kPanelPadding - 1) / kPanelPadding, 1, sums, patch_embed_weight_sum);
}

inline void run(const Cpu&, const PatchEmbedPosGrad& a) { parallel(a.tokens, 4, a, patch_embed_pos_grad); }
#endif

inline void run(const Cuda& cuda, const PatchEmbedForward& a, const Tensor&, const char*) {
  cuda.check(patch_embed_forward_cuda(a, cuda.stream()));
}

inline void run(const Cuda& cuda, const PatchEmbedImageGrad& a, const Tensor&, const char*) {
  cuda.check(patch_embed_image_grad_cuda(a, cuda.stream()));
}

inline void run(const Cuda& cuda, PatchEmbedWeightGrad a, const Tensor& x, const WeightGradients& out) {
  const int64_t pixels = a.grid.pixels();
  a.chunk = patch_embed_chunk_tokens(a.tokens, a.dim, pixels);
  const int64_t chunks = chunk_count(a.tokens, a.chunk);
  Tensor partial = empty_f32(x, {chunks, a.dim, pixels}), bias_partial = empty_f32(x, {chunks, a.dim});
  a.partial = partial.mutable_data_ptr<float>();
  a.bias_partial = bias_partial.mutable_data_ptr<float>();
  cuda.check(patch_embed_weight_grad_cuda(a, cuda.stream()));
  if (out.dweight) run(cuda, TokenSums{a.partial, {out.dweight}, 1, 1, chunks, a.dim * pixels, a.dtype});
  if (out.dbias) run(cuda, TokenSums{a.bias_partial, {out.dbias}, 1, 1, chunks, a.dim, a.dtype});
}

inline void run(const Cuda& cuda, const PatchEmbedPosGrad& a) {
  cuda.check(patch_embed_pos_grad_cuda(a, cuda.stream()));
}

template <class Device>
Tensor forward(Tensor x, Tensor weight, std::optional<Tensor> bias, Tensor pos) {
  const char* op = "patch_embed";
  const Problem problem = check_image(x, weight, op);
  const int64_t d = problem.dim;
  const auto type = x.scalar_type();
  if (bias) check_dense(*bias, {d}, type, op, "bias");
  check_dense(pos, {problem.grid.tokens(), d}, type, op, "pos");
  const Device device(x, op);
  device.align_start({&x, &weight, &pos});
  if (bias) device.align_start({&*bias});
  Tensor out = empty(x, {problem.batch, problem.grid.tokens(), d});
  run(device,
      PatchEmbedForward{x.const_data_ptr(), weight.const_data_ptr(), bias ? bias->const_data_ptr() : nullptr,
                        pos.const_data_ptr(), nullptr, out.mutable_data_ptr(), problem.tokens(), d, problem.grid,
                        dtype_of(x, op)},
      weight, op);
  return out;
}

template <class Device>
std::tuple<Tensor, Tensor, Tensor, Tensor> backward(Tensor dout, Tensor x, Tensor weight, std::vector<bool> needed) {
  const char* op = "patch_embed_backward";
  const Problem problem = check_image(x, weight, op);
  const int64_t d = problem.dim, n = problem.batch, t = problem.grid.tokens(), p = problem.grid.patch;
  check_dense(dout, {n, t, d}, x.scalar_type(), op, "dout");
  STD_TORCH_CHECK(needed.size() == 4, op, ": `needed` must have 4 elements, got ", needed.size());
  const Device device(x, op);
  device.align_start({&dout, &x, &weight});
  const auto make = [&](size_t i, std::vector<int64_t> sizes) {
    return empty(x, needed[i] ? sizes : std::vector<int64_t>{0});
  };
  Tensor dx = make(0, {n, x.size(1), x.size(2), x.size(3)}), dweight = make(1, {d, x.size(1), p, p});
  Tensor dbias = make(2, {d}), dpos = make(3, {t, d});
  const Dtype dtype = dtype_of(x, op);
  const void* from = dout.const_data_ptr();
  if (needed[0])
    run(device,
        PatchEmbedImageGrad{from, weight.const_data_ptr(), nullptr, dx.mutable_data_ptr(), problem.tokens(), d,
                            problem.grid, dtype},
        weight, op);
  if (needed[1] || needed[2])
    run(device,
        PatchEmbedWeightGrad{from, x.const_data_ptr(), nullptr, nullptr, problem.tokens(), d, 0, problem.grid, dtype},
        x,
        WeightGradients{needed[1] ? dweight.mutable_data_ptr() : nullptr,
                        needed[2] ? dbias.mutable_data_ptr() : nullptr});
  if (needed[3]) run(device, PatchEmbedPosGrad{from, dpos.mutable_data_ptr(), n, t, d, dtype});
  return {dx, dweight, dbias, dpos};
}

template <class Device>
void implement(Registry& m) {
  m.impl("patch_embed", TORCH_BOX(&forward<Device>));
  m.impl("patch_embed_backward", TORCH_BOX(&backward<Device>));
}

}  // namespace
}  // namespace dit

STABLE_TORCH_LIBRARY_FRAGMENT(DIT_LIBRARY, m) {
  m.def("patch_embed(Tensor x, Tensor weight, Tensor? bias, Tensor pos) -> Tensor");
  m.def(
      "patch_embed_backward(Tensor dout, Tensor x, Tensor weight, bool[] needed)"
      " -> (Tensor, Tensor, Tensor, Tensor)");
}

DIT_IMPLEMENT(dit::implement)
