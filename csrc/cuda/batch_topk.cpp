// The batch_topk ops on CUDA: checks, outputs and workspaces, and the launch. The contract is in
// ../ops/batch_topk.cpp, the kernels in batch_topk_kernel.cuh. Nothing here waits for the device.
#include "batch_topk.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <limits>

#include "../ops/batch_topk.h"
#include "context.h"
#include "tensor_types.h"

// The tests compile this file for the CPU key, with the kernels emulated.
#ifndef SPARSEVAE_CUDA_KEY
#define SPARSEVAE_CUDA_KEY CUDA
#endif

namespace sparsevae::cuda {
namespace {

using torch::stable::contiguous;
using torch::stable::new_empty;

std::tuple<Tensor, Tensor, Tensor> batch_topk(const Tensor& h_in, int64_t k) {
  const char* op = "batch_topk";
  check_batch_topk(h_in, k);
  const FloatType type = float_type(op, h_in);
  const Context context(op, h_in);
  const Tensor h = contiguous(h_in);
  const int64_t rows = h.size(0), entries = h.numel(), count = rows * k;
  Tensor out = new_empty(h, {rows, h.size(1)});
  Tensor threshold = new_empty(h, {1});
  Tensor kept = new_empty(h, {count}, ScalarType::Long);
  if (count == 0) {
    torch::stable::fill_(threshold, std::numeric_limits<double>::infinity());
  } else {
    const Tensor workspace = new_empty(h, {batch_topk_workspace(entries)}, ScalarType::Long);
    const BatchTopK args{.float_type = type,
                         .h = h.const_data_ptr(),
                         .out = out.mutable_data_ptr(),
                         .threshold = threshold.mutable_data_ptr(),
                         .kept = static_cast<int64_t*>(kept.mutable_data_ptr()),
                         .workspace = static_cast<int64_t*>(workspace.mutable_data_ptr()),
                         .entries = entries,
                         .count = count};
    check_cuda(op, launch_batch_topk(args, context.stream()));
  }
  return {out, torch::stable::squeeze(threshold, 0), kept};
}

Tensor batch_topk_backward(const Tensor& grad_in, const Tensor& kept_in) {
  const char* op = "batch_topk_backward";
  check_batch_topk_backward(grad_in, kept_in);
  const FloatType type = float_type(op, grad_in);
  const Context context(op, grad_in);
  const Tensor grad = contiguous(grad_in), kept = contiguous(kept_in);
  Tensor out = torch::stable::new_zeros(grad, {grad.size(0), grad.size(1)});
  const BatchTopKBackward args{.float_type = type,
                               .grad = grad.const_data_ptr(),
                               .kept = static_cast<const int64_t*>(kept.const_data_ptr()),
                               .out = out.mutable_data_ptr(),
                               .entries = grad.numel(),
                               .count = kept.numel()};
  check_cuda(op, launch_batch_topk_backward(args, context.stream()));
  return out;
}

}  // namespace
}  // namespace sparsevae::cuda

STABLE_TORCH_LIBRARY_IMPL(sparsevae_ext, SPARSEVAE_CUDA_KEY, m) {
  m.impl("batch_topk", TORCH_BOX(&sparsevae::cuda::batch_topk));
  m.impl("batch_topk_backward", TORCH_BOX(&sparsevae::cuda::batch_topk_backward));
}
