// The topk ops on CUDA: checks, outputs and workspaces, and the launch. The contract is in
// ../ops/topk.cpp, the kernels in topk_kernel.cuh. Nothing here waits for the device.
#include "topk.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "../ops/topk.h"
#include "context.h"
#include "tensor_types.h"

// The tests compile this file for the CPU key, with the kernels emulated.
#ifndef SPARSEVAE_CUDA_KEY
#define SPARSEVAE_CUDA_KEY CUDA
#endif

namespace sparsevae::cuda {
namespace {

using torch::stable::contiguous;

std::tuple<Tensor, Tensor> topk(const Tensor& h_in, int64_t k, bool by_index) {
  const char* op = "topk";
  check_topk(h_in, k);
  const FloatType type = float_type(op, h_in);
  const Context context(op, h_in);
  const Tensor h = contiguous(h_in);
  const int64_t rows = h.size(0);
  Tensor values = torch::stable::new_empty(h, {rows, k});
  Tensor indices = torch::stable::new_empty(h, {rows, k}, ScalarType::Long);
  const Tensor workspace = torch::stable::new_empty(h, {rows, k}, ScalarType::Int);
  const TopK args{.float_type = type,
                  .h = h.const_data_ptr(),
                  .values = values.mutable_data_ptr(),
                  .indices = static_cast<int64_t*>(indices.mutable_data_ptr()),
                  .workspace = static_cast<int32_t*>(workspace.mutable_data_ptr()),
                  .rows = rows,
                  .width = h.size(1),
                  .k = k,
                  .by_index = by_index};
  check_cuda(op, launch_topk(args, context.stream()));
  return {values, indices};
}

Tensor topk_backward(const Tensor& grad_in, const Tensor& indices_in, int64_t width) {
  const char* op = "topk_backward";
  check_topk_backward(grad_in, indices_in, width);
  const FloatType type = float_type(op, grad_in);
  const Context context(op, grad_in);
  const Tensor grad = contiguous(grad_in), indices = contiguous(indices_in);
  Tensor out = torch::stable::new_zeros(grad, {grad.size(0), width});
  const TopKBackward args{.float_type = type,
                          .grad = grad.const_data_ptr(),
                          .indices = static_cast<const int64_t*>(indices.const_data_ptr()),
                          .out = out.mutable_data_ptr(),
                          .rows = grad.size(0),
                          .k = grad.size(1),
                          .width = width};
  check_cuda(op, launch_topk_backward(args, context.stream()));
  return out;
}

}  // namespace
}  // namespace sparsevae::cuda

STABLE_TORCH_LIBRARY_IMPL(sparsevae_ext, SPARSEVAE_CUDA_KEY, m) {
  m.impl("topk", TORCH_BOX(&sparsevae::cuda::topk));
  m.impl("topk_backward", TORCH_BOX(&sparsevae::cuda::topk_backward));
}
