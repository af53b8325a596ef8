// SPDX-License-Identifier: Apache-2.0
// adamw_ema: schema, checks and launches. Formulas in adamw_ema.cuh and dit_fast/ops/adamw_ema/operator.py. There is no
// CPU kernel: on a CPU the op uses PyTorch's own.
#include "ops/adamw_ema/adamw_ema.h"

#include <cmath>
#include <limits>
#include <type_traits>

#include "common/device.h"

namespace dit {
namespace {

using Tensors = std::vector<Tensor>;

// One contiguous tensor of a common dtype for each of `params`, or none at all where that is allowed.
void check_list(const Tensors& tensors, const Tensors& params, ScalarType dtype, bool optional, const char* name) {
  const char* op = "adamw_ema";
  if (optional && tensors.empty()) return;
  STD_TORCH_CHECK(tensors.size() == params.size(), op, ": `", name, "` must hold ", params.size(), " tensors, got ",
                  tensors.size());
  for (size_t i = 0; i < tensors.size(); ++i) {
    check_dtype(tensors[i], dtype, op, name);
    STD_TORCH_CHECK(tensors[i].numel() == params[i].numel(), op, ": `", name, "` must have the sizes of `params`");
    STD_TORCH_CHECK(tensors[i].is_contiguous(), op, ": `", name, "` must be contiguous");
    STD_TORCH_CHECK(tensors[i].device() == params[0].device(), op, ": `", name, "` must be on the device of `params`");
  }
}

const float* scalar(const std::optional<Tensor>& tensor, const Tensor& first, const char* name) {
  if (!tensor) return nullptr;
  check_dense(*tensor, {}, ScalarType::Float, "adamw_ema", name);
  STD_TORCH_CHECK(tensor->device() == first.device(), "adamw_ema: `", name, "` must be on the device of `params`");
  return tensor->const_data_ptr<float>();
}

template <class Device>
void forward(Tensors params, Tensors grads, Tensors exp_avgs, Tensors exp_avg_sqs, Tensors steps, Tensors emas,
             Tensors copies, std::optional<Tensor> lr_tensor, std::optional<Tensor> clip, double lr, double beta1,
             double beta2, double eps, double weight_decay, double ema_decay) {
  const char* op = "adamw_ema";
  if (params.empty()) return;
  const Device device(params[0], op);
  const Tensor& as_copy = copies.empty() ? params[0] : copies[0];
  check_list(params, params, params[0].scalar_type(), false, "params");
  check_list(grads, params, grads.empty() ? ScalarType::Float : grads[0].scalar_type(), false, "grads");
  check_list(exp_avgs, params, ScalarType::Float, false, "exp_avgs");
  check_list(exp_avg_sqs, params, ScalarType::Float, false, "exp_avg_sqs");
  check_list(emas, params, ScalarType::Float, true, "emas");
  check_list(copies, params, as_copy.scalar_type(), true, "copies");
  STD_TORCH_CHECK(steps.size() == params.size(), op, ": `steps` must hold ", params.size(), " tensors, got ",
                  steps.size());

  AdamwEma a{};
  a.lr_tensor = scalar(lr_tensor, params[0], "lr_tensor");
  a.clip = scalar(clip, params[0], "clip");
  a.lr = float(lr);
  a.log_beta1 = float(std::log(beta1));
  a.log_beta2 = float(std::log(beta2));
  a.rest1 = float(1 - beta1);
  a.beta2 = float(beta2);
  a.rest2 = float(1 - beta2);
  a.eps = float(eps);
  a.weight_decay = float(weight_decay);
  a.rest_ema = float(1 - ema_decay);
  a.param_dtype = dtype_of(params[0], op);
  a.grad_dtype = dtype_of(grads[0], op);
  a.copy_dtype = dtype_of(as_copy, op);
  STD_TORCH_CHECK(a.param_dtype == Dtype::f32 || a.param_dtype == a.copy_dtype, op,
                  ": only float32 `params` have `copies`");
  STD_TORCH_CHECK(a.grad_dtype == Dtype::f32 || a.grad_dtype == a.copy_dtype, op,
                  ": `grads` must be float32 or of the dtype of `copies`, else `params`");

  int64_t blocks = 0;
  const auto launch = [&] {
    if (a.count > 0) device.check(adamw_ema_cuda(a, device.stream()));
    a.count = 0;
    blocks = 0;
  };
  for (size_t i = 0; i < params.size(); ++i) {
    const int64_t numel = params[i].numel(), more = chunk_count(numel, kAdamwEmaChunk);
    const float* step = scalar(steps[i], params[0], "steps");
    if (numel == 0) continue;
    if (a.count == AdamwEma::kTensors || blocks + more > std::numeric_limits<int32_t>::max()) launch();
    blocks += more;
    a.end_block[a.count] = int32_t(blocks);
    a.tensors[a.count++] = {params[i].mutable_data_ptr(),
                            grads[i].const_data_ptr(),
                            exp_avgs[i].mutable_data_ptr<float>(),
                            exp_avg_sqs[i].mutable_data_ptr<float>(),
                            emas.empty() ? nullptr : emas[i].mutable_data_ptr<float>(),
                            copies.empty() ? nullptr : copies[i].mutable_data_ptr(),
                            step,
                            numel};
  }
  launch();
}

template <class Device>
void implement(Registry& m) {
  if constexpr (std::is_same_v<Device, Cuda>) m.impl("adamw_ema", TORCH_BOX(&forward<Device>));
}

}  // namespace
}  // namespace dit

STABLE_TORCH_LIBRARY_FRAGMENT(DIT_LIBRARY, m) {
  m.def(
      "adamw_ema(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] exp_avgs, Tensor(c!)[] exp_avg_sqs, Tensor[] steps,"
      " Tensor(d!)[] emas, Tensor(e!)[] copies, Tensor? lr_tensor, Tensor? clip, float lr, float beta1, float beta2,"
      " float eps, float weight_decay, float ema_decay) -> ()");
}

DIT_IMPLEMENT(dit::implement)
