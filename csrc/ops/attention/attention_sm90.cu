// SPDX-License-Identifier: Apache-2.0
// Launches attention's CUDA kernels of sm_90a.
#include "ops/attention/attention_sm90.h"

#include <algorithm>

#include "ops/attention/attention_sm90_dkdv.cuh"
#include "ops/attention/dispatch_heads.h"

namespace dit {
namespace {

using namespace sm90;

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
// Up to so many, the forward's blocks stay: on an H200 a gain of 4 to 20% at 64 and 256 keys, a loss of 5% at 1024.
constexpr int64_t kFewKeys = 512;
constexpr int64_t kMost = (int64_t(1) << 31) - 1;

bool aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

bool fits(const void* data, const HeadStrides& stride, int64_t samples, int64_t tokens, int64_t heads) {
  const auto good = [](int64_t elements, int64_t size) {
    return size == 1 || (elements > 0 && elements % 8 == 0 && elements < int64_t(1) << 39);
  };
  return aligned(data) && good(stride.sample, samples) && good(stride.token, tokens) && good(stride.head, heads);
}

template <class Args>
bool shapes_fit(const Args& a) {
  const bool known = a.dtype != Dtype::f32 && (a.dim == 64 || a.dim == 72);
  const bool some = a.batch > 0 && a.queries > 0 && a.keys > 0 && a.heads > 0;
  // Rows and tiles are counted in 32 bits, padding included.
  return known && some && a.batch * a.heads <= kMost && a.queries <= kMost - 512 && a.keys <= kMost - 512 &&
         a.batch * a.heads * ceil_div(a.queries, 64) <= kMost && a.batch * a.heads * ceil_div(a.keys, 64) <= kMost &&
         fits(a.q.data, a.q.stride, a.batch, a.queries, a.heads) &&
         fits(a.k.data, a.k.stride, a.batch, a.keys, a.heads) && fits(a.v.data, a.v.stride, a.batch, a.keys, a.heads);
}

// A stride over one element is never taken, but must be one that TMA accepts.
template <class T, int kDim>
cudaError_t describe(HeadMaps* maps, const void* data, const HeadStrides& stride, int64_t samples, int64_t tokens,
                     int64_t heads) {
  const auto bytes = [](int64_t elements, int64_t size) { return size == 1 ? 2 * kDim : 2 * elements; };
  const int64_t sizes[4] = {kDim, heads, tokens, samples};
  const int64_t strides[3] = {bytes(stride.head, heads), bytes(stride.token, tokens), bytes(stride.sample, samples)};
  cudaError_t error = make_tensor_map<T>(&maps->main, data, sizes, strides, {kSwizzleRowElements, 1, kRows, 1});
  if (error == cudaSuccess && kTail<kDim>)
    error = make_tensor_map<T>(&maps->tail, data, sizes, strides, {kPlainRowElements, 1, kRows, 1});
  return error;
}

bool keeps_a_head(const AttentionBackward& a) {
  return a.queries <= kItemKeys && a.keys > kRows && a.keys <= kItemKeys;
}

template <class T, int kDim, bool kWhole>
cudaError_t launch_dkdv(const BackwardMaps& maps, const AttentionBackward& a, cudaStream_t stream) {
  const int64_t items = a.batch * a.heads * ceil_div(a.keys, kItemKeys);
  const dim3 grid(unsigned(std::min<int64_t>(items, multiprocessors())));
  return launch(attention_dkdv_sm90_kernel<T, kDim, kWhole>, grid, dim3(kBackwardThreads),
                DkdvRoom<kDim, kWhole>::kBytes, stream, maps, a);
}

}  // namespace

bool attention_fits_sm90(const AttentionForward& a) { return shapes_fit(a) && aligned(a.out); }

bool attention_fits_sm90(const AttentionBackward& a) {
  const auto fits_too = [&](const MutableHeads& x, int64_t tokens) {
    return fits(x.data, x.stride, a.batch, tokens, a.heads);
  };
  return shapes_fit(a) && aligned(a.dout) && fits_too(a.dq, a.queries) && fits_too(a.dk, a.keys) &&
         fits_too(a.dv, a.keys);
}

int attention_forward_sm90_cuda(const AttentionForward& a, void* stream) {
  if (!attention_fits_sm90(a)) return cudaErrorInvalidValue;
  return dispatch_heads(a.dtype, a.dim, [&](auto* element, auto dim) -> cudaError_t {
    using T = std::remove_pointer_t<decltype(element)>;
    constexpr int kDim = decltype(dim)::value;
    using Room = ForwardRoom<kDim>;
    ForwardMaps maps{};
    cudaError_t error = describe<T, kDim>(&maps.q, a.q.data, a.q.stride, a.batch, a.queries, a.heads);
    if (error == cudaSuccess) error = describe<T, kDim>(&maps.k, a.k.data, a.k.stride, a.batch, a.keys, a.heads);
    if (error == cudaSuccess) error = describe<T, kDim>(&maps.v, a.v.data, a.v.stride, a.batch, a.keys, a.heads);
    if (error != cudaSuccess) return error;
    const int64_t blocks = a.batch * a.heads * ceil_div(a.queries, Room::kQueries);
    const auto with = [&](auto* kernel, int64_t grid) {
      return launch(kernel, dim3(unsigned(grid)), dim3(kThreads), Room::kBytes, static_cast<cudaStream_t>(stream), maps,
                    a);
    };
    if (a.keys > kFewKeys) return with(attention_forward_sm90_kernel<T, kDim, false>, blocks);
    return with(attention_forward_sm90_kernel<T, kDim, true>, std::min<int64_t>(blocks, 2 * multiprocessors()));
  });
}

int64_t attention_backward_scratch_sm90_cuda(const AttentionBackward& a) {
  return keeps_a_head(a) ? 0 : 3 * a.batch * a.heads * a.queries;
}

int attention_backward_sm90_cuda(const AttentionBackward& a, void* stream) {
  if (!attention_fits_sm90(a)) return cudaErrorInvalidValue;
  return dispatch_heads(a.dtype, a.dim, [&](auto* element, auto dim) -> cudaError_t {
    using T = std::remove_pointer_t<decltype(element)>;
    constexpr int kDim = decltype(dim)::value;
    using Room = DqRoom<kDim>;
    const auto s = static_cast<cudaStream_t>(stream);
    const HeadStrides dense{a.queries * a.heads * kDim, a.heads * kDim, kDim};
    BackwardMaps maps{};
    cudaError_t error = describe<T, kDim>(&maps.q, a.q.data, a.q.stride, a.batch, a.queries, a.heads);
    if (error == cudaSuccess) error = describe<T, kDim>(&maps.k, a.k.data, a.k.stride, a.batch, a.keys, a.heads);
    if (error == cudaSuccess) error = describe<T, kDim>(&maps.v, a.v.data, a.v.stride, a.batch, a.keys, a.heads);
    if (error == cudaSuccess) error = describe<T, kDim>(&maps.dout, a.dout, dense, a.batch, a.queries, a.heads);
    if (error != cudaSuccess) return error;
    if (keeps_a_head(a)) return launch_dkdv<T, kDim, true>(maps, a, s);
    const int64_t blocks = a.batch * a.heads * ceil_div(a.queries, Room::kQueries);
    error = launch(attention_dq_sm90_kernel<T, kDim>, dim3(unsigned(blocks)), dim3(kBackwardThreads), Room::kBytes, s,
                   maps, a);
    return error == cudaSuccess ? launch_dkdv<T, kDim, false>(maps, a, s) : error;
  });
}

}  // namespace dit
