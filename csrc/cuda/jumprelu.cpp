// The jumprelu ops on CUDA: checks, outputs and workspaces, and the launch. The contract is in
// ../ops/jumprelu.cpp, the kernels in jumprelu_kernel.cuh. Nothing here waits for the device.
#include "jumprelu.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "../ops/jumprelu.h"
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

std::tuple<Tensor, Tensor> jumprelu(const Tensor& h_in, const Tensor& threshold_in,
                                    double bandwidth) {
  const char* op = "jumprelu";
  check_jumprelu(op, h_in, threshold_in, bandwidth);
  const FloatType type = float_type(op, h_in);
  const Context context(op, h_in);
  const Tensor h = contiguous(h_in), threshold = contiguous(threshold_in);
  const int64_t rows = h.size(0), width = h.size(1);
  Tensor out = new_empty(h, {rows, width});
  Tensor count = new_empty(threshold, {rows});
  const JumpReLU args{.float_type = type,
                      .h = h.const_data_ptr(),
                      .threshold = threshold.const_data_ptr(),
                      .out = out.mutable_data_ptr(),
                      .count = count.mutable_data_ptr(),
                      .rows = rows,
                      .width = width};
  check_cuda(op, launch_jumprelu(args, context.stream()));
  return {out, count};
}

std::tuple<Tensor, Tensor> jumprelu_backward(const std::optional<Tensor>& grad_out_in,
                                             const std::optional<Tensor>& grad_count_in,
                                             const Tensor& h_in, const Tensor& threshold_in,
                                             double bandwidth, bool wants_h, bool wants_threshold) {
  const char* op = "jumprelu_backward";
  check_jumprelu_backward(grad_out_in, grad_count_in, h_in, threshold_in, bandwidth);
  const FloatType type = float_type(op, h_in);
  const Context context(op, h_in);
  const Tensor h = contiguous(h_in), threshold = contiguous(threshold_in);
  std::optional<Tensor> grad_out, grad_count;
  if (grad_out_in) grad_out = contiguous(*grad_out_in);
  if (grad_count_in) grad_count = contiguous(*grad_count_in);
  const int64_t rows = h.size(0), width = h.size(1), none = 0;
  Tensor grad_h = wants_h ? new_empty(h, {rows, width}) : new_empty(h, {none});
  Tensor grad_threshold = new_empty(threshold, {wants_threshold ? width : none});
  const Tensor workspace =
      new_empty(threshold, {wants_threshold ? jumprelu_row_blocks(rows) * width : none});
  const JumpReLUBackward args{
      .float_type = type,
      .grad_out = grad_out ? grad_out->const_data_ptr() : nullptr,
      .grad_count = grad_count ? grad_count->const_data_ptr() : nullptr,
      .h = h.const_data_ptr(),
      .threshold = threshold.const_data_ptr(),
      .grad_h = wants_h ? grad_h.mutable_data_ptr() : nullptr,
      .grad_threshold = wants_threshold ? grad_threshold.mutable_data_ptr() : nullptr,
      .workspace = workspace.mutable_data_ptr(),
      .bandwidth = bandwidth,
      .rows = rows,
      .width = width};
  check_cuda(op, launch_jumprelu_backward(args, context.stream()));
  return {grad_h, grad_threshold};
}

}  // namespace
}  // namespace sparsevae::cuda

STABLE_TORCH_LIBRARY_IMPL(sparsevae_ext, SPARSEVAE_CUDA_KEY, m) {
  m.impl("jumprelu", TORCH_BOX(&sparsevae::cuda::jumprelu));
  m.impl("jumprelu_backward", TORCH_BOX(&sparsevae::cuda::jumprelu_backward));
}
