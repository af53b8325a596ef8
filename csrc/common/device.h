// SPDX-License-Identifier: Apache-2.0
// Where an op runs. A registering file writes its checks and allocations once, over a class `Device`, and overloads
// `run(device, args)` for each: Cpu loops over work items; Cuda makes the tensor's GPU current, launches on PyTorch's
// current stream, and turns an error of a launch into a Python exception.
//
// The same files compiled with DIT_HOST_EXEC register the CUDA kernels for CPU tensors under `dit_fast_host_exec`
// (csrc/host_exec): what the tests run is what a GPU runs, down to the allocations.
#pragma once
#include <torch/csrc/stable/accelerator.h>

#include <optional>

#include "common/stable.h"
#include "common/token_sums.h"

#if defined(DIT_HOST_EXEC)
#define DIT_LIBRARY dit_fast_host_exec
#else
#define DIT_LIBRARY dit_fast_native
#endif

// Absent from a torch without CUDA, hence weak.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device, void** stream);

namespace dit {

const char* cuda_error_string(int error);

class Cpu {
 public:
  Cpu() = default;
  Cpu(const Tensor&, const char*) {}
  void align(std::initializer_list<Tensor*>) const {}
  void align_start(std::initializer_list<Tensor*>) const {}
  int64_t chunk_tokens(int64_t, int64_t) const { return kCpuChunk; }
};

class Cuda {
 public:
  Cuda(const Tensor& t, const char* op) : op_(op) {
#if !defined(DIT_HOST_EXEC)
    STD_TORCH_CHECK(&aoti_torch_get_current_cuda_stream != nullptr, op, ": this torch has no CUDA");
    const int32_t index = t.get_device_index();
    guard_.emplace(index);
    STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream(index, &stream_) == 0, op, ": no current stream");
#else
    (void)t;
#endif
  }

  void* stream() const { return stream_; }

  // Kernels read rows as 16-byte vectors: a tensor whose rows do not start at such addresses is replaced by a copy.
  void align(std::initializer_list<Tensor*> tensors) const {
    for (Tensor* t : tensors) {
      int64_t bits = reinterpret_cast<intptr_t>(t->const_data_ptr());
      for (int64_t i = 0; i + 1 < t->dim(); ++i)
        if (t->size(i) > 1) bits |= t->stride(i) * size_of(dtype_of(*t, op_));
      if (bits % 16 != 0) *t = torch::stable::clone(*t);
    }
  }

  // For kernels that look at the sizes of dense tensors themselves: only the first element must be so aligned.
  void align_start(std::initializer_list<Tensor*> tensors) const {
    for (Tensor* t : tensors)
      if (reinterpret_cast<intptr_t>(t->const_data_ptr()) % 16 != 0) *t = torch::stable::clone(*t);
  }

  int64_t chunk_tokens(int64_t batch, int64_t tokens) const { return cuda_chunk_tokens(batch, tokens); }

  void check(int error) const { STD_TORCH_CHECK(error == 0, op_, ": ", cuda_error_string(error)); }

 private:
  const char* op_;
  void* stream_ = nullptr;
  std::optional<torch::stable::accelerator::DeviceGuard> guard_;
};

using Registry = torch::stable::detail::StableLibrary;

inline int64_t chunk_count(int64_t tokens, int64_t chunk) { return (tokens + chunk - 1) / chunk; }

#if !defined(DIT_HOST_EXEC)
inline void run(const Cpu&, const TokenSums& a) { parallel(a.batch, 1, a, finish_token_sums); }
#endif
inline void run(const Cuda& cuda, const TokenSums& a) { cuda.check(finish_token_sums_cuda(a, cuda.stream())); }

}  // namespace dit

// Calls `template <class Device> void implement(Registry& m)` on the devices that this build has kernels for.
#if defined(DIT_HOST_EXEC)
#define DIT_IMPLEMENT(implement) \
  STABLE_TORCH_LIBRARY_IMPL(DIT_LIBRARY, CPU, m) { implement<dit::Cuda>(m); }
#elif defined(DIT_CUDA)
#define DIT_IMPLEMENT(implement)                                              \
  STABLE_TORCH_LIBRARY_IMPL(DIT_LIBRARY, CPU, m) { implement<dit::Cpu>(m); }  \
  STABLE_TORCH_LIBRARY_IMPL(DIT_LIBRARY, CUDA, m) { implement<dit::Cuda>(m); }
#else
#define DIT_IMPLEMENT(implement) \
  STABLE_TORCH_LIBRARY_IMPL(DIT_LIBRARY, CPU, m) { implement<dit::Cpu>(m); }
#endif
