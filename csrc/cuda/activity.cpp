// The activity ops on CUDA: checks, outputs and the launch. The contract is in ../ops/activity.cpp,
// the kernels in activity_kernel.cuh. Nothing here waits for the device.
#include "activity.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <tuple>

#include "../ops/activity.h"
#include "context.h"
#include "tensor_types.h"

// The tests compile this file for the CPU key, with the kernels emulated.
#ifndef SPARSEVAE_CUDA_KEY
#define SPARSEVAE_CUDA_KEY CUDA
#endif

namespace sparsevae::cuda {
namespace {

using torch::stable::contiguous;

std::tuple<Tensor, Tensor> forward(const char* op, int order, const Tensor& h,
                                   const std::string& name) {
  check_activity(op, h);
  const Activation activation = parse_activation(op, name);
  const FloatType type = float_type(op, h);
  const Context context(op, h);
  const Tensor h_c = contiguous(h);
  Tensor activated = torch::stable::new_empty(h, {h.size(0), h.size(1)});
  Tensor penalty = torch::stable::new_empty(h, {h.size(0)}, accumulation_type(h));
  const ActivityForward args{
      .type = type,
      .h = h_c.const_data_ptr(),
      .activated = activated.mutable_data_ptr(),
      .penalty = penalty.mutable_data_ptr(),
      .rows = h.size(0),
      .width = h.size(1),
      .activation = activation,
      .order = order,
  };
  check_cuda(op, launch_activity_forward(args, context.stream()));
  return {activated, penalty};
}

Tensor backward(const char* op, int order, const std::optional<Tensor>& grad_activated,
                const std::optional<Tensor>& grad_penalty, const Tensor& activated,
                const std::string& name) {
  check_activity_backward(op, grad_activated, grad_penalty, activated);
  const Activation activation = parse_activation(op, name);
  const FloatType type = float_type(op, activated);
  const Context context(op, activated);
  const Tensor activated_c = contiguous(activated);
  std::optional<Tensor> grad_activated_c, grad_penalty_c;
  if (grad_activated) grad_activated_c = contiguous(*grad_activated);
  if (grad_penalty) grad_penalty_c = contiguous(*grad_penalty);
  Tensor grad_h = torch::stable::new_empty(activated, {activated.size(0), activated.size(1)});
  const ActivityBackward args{
      .type = type,
      .grad_activated = grad_activated_c ? grad_activated_c->const_data_ptr() : nullptr,
      .grad_penalty = grad_penalty_c ? grad_penalty_c->const_data_ptr() : nullptr,
      .activated = activated_c.const_data_ptr(),
      .grad_h = grad_h.mutable_data_ptr(),
      .rows = activated.size(0),
      .width = activated.size(1),
      .activation = activation,
      .order = order,
  };
  check_cuda(op, launch_activity_backward(args, context.stream()));
  return grad_h;
}

std::tuple<Tensor, Tensor> l1_activity(const Tensor& h, const std::string& activation) {
  return forward("l1_activity", 1, h, activation);
}

std::tuple<Tensor, Tensor> l2_activity(const Tensor& h, const std::string& activation) {
  return forward("l2_activity", 2, h, activation);
}

Tensor l1_activity_backward(const std::optional<Tensor>& grad_activated,
                            const std::optional<Tensor>& grad_penalty, const Tensor& activated,
                            const std::string& activation) {
  return backward("l1_activity_backward", 1, grad_activated, grad_penalty, activated, activation);
}

Tensor l2_activity_backward(const std::optional<Tensor>& grad_activated,
                            const std::optional<Tensor>& grad_penalty, const Tensor& activated,
                            const std::string& activation) {
  return backward("l2_activity_backward", 2, grad_activated, grad_penalty, activated, activation);
}

}  // namespace
}  // namespace sparsevae::cuda

STABLE_TORCH_LIBRARY_IMPL(sparsevae_ext, SPARSEVAE_CUDA_KEY, m) {
  m.impl("l1_activity", TORCH_BOX(&sparsevae::cuda::l1_activity));
  m.impl("l2_activity", TORCH_BOX(&sparsevae::cuda::l2_activity));
  m.impl("l1_activity_backward", TORCH_BOX(&sparsevae::cuda::l1_activity_backward));
  m.impl("l2_activity_backward", TORCH_BOX(&sparsevae::cuda::l2_activity_backward));
}
