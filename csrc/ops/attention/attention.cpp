// SPDX-License-Identifier: Apache-2.0
// attention: schema, checks and launches. Formulas in dit_fast/ops/attention/autograd.py and prepare.h.
#include "ops/attention/attention.h"

#include <cmath>
#include <optional>

#include "common/device.h"
#include "ops/attention/forward.h"
#include "ops/attention/prepare.h"

namespace dit {
namespace {

using MaybeTensor = std::optional<Tensor>;

#if !defined(DIT_HOST_EXEC)
inline void run(const Cpu&, const Prepare& a) { parallel(a.tokens(), 16, a, prepare); }
inline void run(const Cpu&, const PrepareBackward& a) { parallel(a.chunks(), 1, a, prepare_backward); }
inline void run(const Cpu&, const AttentionForward& a) {
  parallel_in_runs(a.batch * a.heads * attention_blocks(a.queries), attention_blocks(a.queries), a, attention_forward);
}
inline void run(const Cpu&, const AttentionBackward& a) { parallel(a.batch * a.heads, 1, a, attention_backward); }
inline int64_t scratch_floats(const Cpu&, const AttentionBackward&) { return 0; }
#endif
inline void run(const Cuda& cuda, const Prepare& a) { cuda.check(prepare_cuda(a, cuda.stream())); }
inline void run(const Cuda& cuda, const PrepareBackward& a) { cuda.check(prepare_backward_cuda(a, cuda.stream())); }
inline void run(const Cuda& cuda, const AttentionForward& a) { cuda.check(attention_forward_cuda(a, cuda.stream())); }
inline void run(const Cuda& cuda, const AttentionBackward& a) { cuda.check(attention_backward_cuda(a, cuda.stream())); }
inline int64_t scratch_floats(const Cuda&, const AttentionBackward& a) { return attention_backward_scratch_cuda(a); }

// One of q, k, v as it was given: a tensor of its own, or the third `index` of a packed one.
struct View {
  Tensor tensor;
  int64_t index = 0;
  bool packed = false;

  const void* data() const { return shifted(tensor.const_data_ptr()); }
  void* mutable_data() const { return const_cast<void*>(shifted(tensor.mutable_data_ptr())); }
  HeadStrides stride() const {
    const int head = packed ? 3 : 2;
    return {tensor.stride(0), tensor.stride(1), tensor.stride(head)};
  }
  Heads heads() const { return {data(), stride()}; }
  MutableHeads mutable_heads() const { return {mutable_data(), stride()}; }

 private:
  const void* shifted(const void* p) const {
    const int64_t elements = packed ? index * tensor.stride(2) : 0;
    return static_cast<const char*>(p) + elements * int64_t(tensor.element_size());
  }
};

struct Views {
  View q, k, v;
};

Views views(const Tensor& q, const MaybeTensor& k, const MaybeTensor& v) {
  if (!k) return {{q, 0, true}, {q, 1, true}, {q, 2, true}};
  return {{q}, {*k}, {*v}};
}

struct Sizes {
  int64_t batch, queries, keys, heads, dim;
};

Sizes check_heads(const Tensor& q, const MaybeTensor& k, const MaybeTensor& v, const char* op) {
  STD_TORCH_CHECK(k.has_value() == v.has_value(), op, ": `k` and `v` must both be given or both None");
  const int64_t dims = k ? 4 : 5;
  STD_TORCH_CHECK(q.dim() == dims, op, ": `q` must have ", dims, " dimensions, got ", q.dim());
  const int64_t n = q.size(0), t = q.size(1), h = q.size(dims - 2), dh = q.size(dims - 1);
  if (!k) STD_TORCH_CHECK(q.size(2) == 3, op, ": `q` must have size 3 in dimension 2, got ", q.size(2));
  const Sizes sizes{n, t, k ? k->size(1) : t, h, dh};
  if (k) check_shape(*k, {n, sizes.keys, h, dh}, op, "k");
  if (v) check_shape(*v, {n, sizes.keys, h, dh}, op, "v");
  for (const Tensor* x : {&q, k ? &*k : &q, v ? &*v : &q}) {
    check_dtype(*x, q.scalar_type(), op, "q, k or v");
    STD_TORCH_CHECK(dh <= 1 || x->stride(x->dim() - 1) == 1, op, ": q, k and v must have a last stride of 1");
  }
  STD_TORCH_CHECK(sizes.keys > 0 || t == 0, op, ": `k` must have at least one token");
  return sizes;
}

// What `prepare` reads besides the heads.
struct Preparation {
  const float *affine = nullptr, *rope = nullptr;
  HeadNorm norm = HeadNorm::none;

  explicit operator bool() const { return rope != nullptr || norm != HeadNorm::none; }
};

Preparation check_preparation(const MaybeTensor& affine, const MaybeTensor& rope, int64_t norm, const Sizes& s,
                              const char* op) {
  STD_TORCH_CHECK(norm >= 0 && norm <= 2, op, ": `norm` must be 0, 1 or 2, got ", norm);
  STD_TORCH_CHECK(!affine || norm > 0, op, ": `affine` must be None without a norm");
  Preparation p;
  p.norm = static_cast<HeadNorm>(norm);
  if (affine) {
    check_dense(*affine, {4, s.dim}, ScalarType::Float, op, "affine");
    p.affine = affine->const_data_ptr<float>();
  }
  if (rope) {
    STD_TORCH_CHECK(s.dim % 2 == 0 && s.queries == s.keys, op, ": `rope` needs an even head width and Tq = Tk");
    check_dense(*rope, {2, s.queries, s.dim / 2}, ScalarType::Float, op, "rope");
    p.rope = rope->const_data_ptr<float>();
  }
  return p;
}

// Prepared queries and keys, dense.
template <class Device>
void prepare_heads(const Device& device, Views& given, const Preparation& p, const Sizes& s, double eps, Dtype dtype) {
  View q{empty(given.q.tensor, {s.batch, s.queries, s.heads, s.dim})};
  View k{empty(given.q.tensor, {s.batch, s.keys, s.heads, s.dim})};
  run(device, Prepare{given.q.heads(), given.k.heads(), p.affine, p.rope, q.mutable_heads(), k.mutable_heads(), s.batch,
                      s.queries, s.keys, s.heads, s.dim, float(eps), p.norm, dtype});
  given.q = q;
  given.k = k;
}

template <class Device>
std::tuple<Tensor, Tensor> forward(Tensor q, MaybeTensor k, MaybeTensor v, MaybeTensor affine, MaybeTensor rope,
                                   double scale, int64_t norm, double eps) {
  const char* op = "attention";
  const Sizes s = check_heads(q, k, v, op);
  const Device device(q, op);
  device.align({&q});
  if (k) device.align({&*k, &*v});
  if (rope) device.align_start({&*rope});
  if (affine) device.align_start({&*affine});
  const Preparation p = check_preparation(affine, rope, norm, s, op);
  const Dtype dtype = dtype_of(q, op);
  Tensor out = empty(q, {s.batch, s.queries, s.heads * s.dim}), lse = empty_f32(q, {s.batch, s.heads, s.queries});
  if (s.batch * s.queries * s.heads * s.dim == 0) return {out, lse};
  Views heads = views(q, k, v);
  if (p) prepare_heads(device, heads, p, s, eps, dtype);
  run(device, AttentionForward{heads.q.heads(), heads.k.heads(), heads.v.heads(), out.mutable_data_ptr(),
                               lse.mutable_data_ptr<float>(), s.batch, s.queries, s.keys, s.heads, s.dim, float(scale),
                               dtype});
  return {out, lse};
}

template <class Device>
std::tuple<Tensor, Tensor, Tensor, Tensor> backward(Tensor dout, Tensor q, MaybeTensor k, MaybeTensor v,
                                                    MaybeTensor affine, MaybeTensor rope, Tensor out, Tensor lse,
                                                    double scale, int64_t norm, double eps) {
  const char* op = "attention_backward";
  const Sizes s = check_heads(q, k, v, op);
  const Device device(q, op);
  device.align({&q, &dout, &out});
  if (k) device.align({&*k, &*v});
  if (rope) device.align_start({&*rope});
  if (affine) device.align_start({&*affine});
  const Preparation p = check_preparation(affine, rope, norm, s, op);
  check_dense(dout, {s.batch, s.queries, s.heads * s.dim}, q.scalar_type(), op, "dout");
  check_dense(out, {s.batch, s.queries, s.heads * s.dim}, q.scalar_type(), op, "out");
  check_dense(lse, {s.batch, s.heads, s.queries}, ScalarType::Float, op, "lse");
  const Dtype dtype = dtype_of(q, op);
  const std::vector<int64_t> queries{s.batch, s.queries, s.heads, s.dim}, keys{s.batch, s.keys, s.heads, s.dim};
  Tensor dq = k ? empty(q, queries) : empty(q, {s.batch, s.queries, 3, s.heads, s.dim});
  Tensor dk = empty(q, k ? keys : std::vector<int64_t>{0}), dv = empty(q, k ? keys : std::vector<int64_t>{0});
  Tensor daffine = empty_f32(q, affine ? std::vector<int64_t>{4, s.dim} : std::vector<int64_t>{0});
  if (s.batch * s.queries * s.heads * s.dim == 0) {  // keys that no query looked at
    for (Tensor* zero : {&dq, &dk, &dv, &daffine}) torch::stable::zero_(*zero);
    return {dq, dk, dv, daffine};
  }
  const Views given = views(q, k, v), gradients = k ? Views{{dq}, {dk}, {dv}} : views(dq, k, v);
  Views heads = given;
  if (p) prepare_heads(device, heads, p, s, eps, dtype);
  AttentionBackward a{heads.q.heads(), heads.k.heads(), heads.v.heads(), dout.const_data_ptr(), out.const_data_ptr(),
                      lse.const_data_ptr<float>(), gradients.q.mutable_heads(), gradients.k.mutable_heads(),
                      gradients.v.mutable_heads(), nullptr, s.batch, s.queries, s.keys, s.heads, s.dim, float(scale),
                      dtype};
  Tensor scratch = empty_f32(q, {scratch_floats(device, a)});
  a.scratch = scratch.mutable_data_ptr<float>();
  run(device, a);
  if (!p) return {dq, dk, dv, daffine};
  PrepareBackward b{given.q.heads(), given.k.heads(), p.affine, p.rope, gradients.q.mutable_heads(),
                    gradients.k.mutable_heads(), nullptr, s.batch, s.queries, s.keys, s.heads, s.dim,
                    device.chunk_tokens(s.batch, s.queries + s.keys), float(eps), p.norm, dtype};
  Tensor sums = empty_f32(q, {affine ? b.chunks() * 4 * s.dim : 0});
  if (affine) b.sums = sums.mutable_data_ptr<float>();
  run(device, b);
  if (affine)
    run(device, TokenSums{b.sums, {daffine.mutable_data_ptr()}, 1, 1, b.chunks(), 4 * s.dim, Dtype::f32});
  return {dq, dk, dv, daffine};
}

template <class Device>
void implement(Registry& m) {
  m.impl("attention", TORCH_BOX(&forward<Device>));
  m.impl("attention_backward", TORCH_BOX(&backward<Device>));
}

}  // namespace

#if !defined(DIT_HOST_EXEC)
void self_attention(const void* qkv, void* out, float* lse, int64_t batch, int64_t tokens, int64_t heads, int64_t dim,
                    Dtype dtype) {
  const int64_t width = heads * dim;
  const HeadStrides stride{tokens * 3 * width, 3 * width, dim};
  const auto third = [&](int64_t i) {
    return Heads{static_cast<const char*>(qkv) + i * width * size_of(dtype), stride};
  };
  run(Cpu{}, AttentionForward{third(0), third(1), third(2), out, lse, batch, tokens, tokens, heads, dim,
                              float(std::pow(double(dim), -0.5)), dtype});
}
#endif

}  // namespace dit

STABLE_TORCH_LIBRARY_FRAGMENT(DIT_LIBRARY, m) {
  m.def("attention(Tensor q, Tensor? k, Tensor? v, Tensor? affine, Tensor? rope, float scale, int norm, float eps)"
        " -> (Tensor, Tensor)");
  m.def("attention_backward(Tensor dout, Tensor q, Tensor? k, Tensor? v, Tensor? affine, Tensor? rope, Tensor out,"
        " Tensor lse, float scale, int norm, float eps) -> (Tensor, Tensor, Tensor, Tensor)");
}

DIT_IMPLEMENT(dit::implement)
