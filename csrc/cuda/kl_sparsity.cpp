// The kl_sparsity ops on CUDA: checks, outputs, workspace and the launch. The contract is in
// ../ops/kl_sparsity.cpp, the kernels in kl_sparsity_kernel.cuh. Nothing here waits for the device.
#include "kl_sparsity.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <tuple>

#include "../ops/kl_sparsity.h"
#include "context.h"
#include "tensor_types.h"

// The tests compile this file for the CPU key, with the kernels emulated.
#ifndef SPARSEVAE_CUDA_KEY
#define SPARSEVAE_CUDA_KEY CUDA
#endif

namespace sparsevae::cuda {
namespace {

using torch::stable::contiguous;

std::tuple<Tensor, Tensor> kl_sparsity(const Tensor& h, double rho) {
  const char* op = "kl_sparsity";
  check_kl_sparsity(op, h, rho);
  const FloatType type = float_type(op, h);
  const Context context(op, h);
  const ScalarType wide = type == FloatType::kDouble ? ScalarType::Double : ScalarType::Float;
  const int64_t rows = h.size(0), width = h.size(1);
  const Tensor h_c = contiguous(h);
  Tensor kl = torch::stable::new_empty(h, {}, wide);
  Tensor mean = torch::stable::new_empty(h, {width}, wide);
  // The allocator keeps this memory for later work on the same stream, so it may be let go of here.
  Tensor workspace = torch::stable::new_empty(h, {kl_sparsity_workspace(rows, width)}, wide);
  const KlSparsity args{
      .type = type,
      .h = h_c.const_data_ptr(),
      .mean = mean.mutable_data_ptr(),
      .kl = kl.mutable_data_ptr(),
      .workspace = workspace.mutable_data_ptr(),
      .rows = rows,
      .width = width,
      .rho = rho,
  };
  check_cuda(op, launch_kl_sparsity(args, context.stream()));
  return {kl, mean};
}

Tensor kl_sparsity_backward(const Tensor& grad, const Tensor& mean, double rho, int64_t n_rows) {
  const char* op = "kl_sparsity_backward";
  check_kl_sparsity_backward(op, grad, mean, rho, n_rows);
  const bool is_double = mean.scalar_type() == ScalarType::Double;
  SPARSEVAE_CHECK(is_double || mean.scalar_type() == ScalarType::Float, op,
                  "(): expected mean to be Float or Double, but got ",
                  torch::headeronly::toString(mean.scalar_type()));
  const Context context(op, mean);
  const Tensor mean_c = contiguous(mean);
  Tensor out = torch::stable::new_empty(mean, {mean.size(0)});
  const KlSparsityBackward args{
      .type = is_double ? FloatType::kDouble : FloatType::kFloat,
      .grad = grad.const_data_ptr(),
      .mean = mean_c.const_data_ptr(),
      .out = out.mutable_data_ptr(),
      .rows = n_rows,
      .width = mean.size(0),
      .rho = rho,
  };
  check_cuda(op, launch_kl_sparsity_backward(args, context.stream()));
  return out;
}

}  // namespace
}  // namespace sparsevae::cuda

STABLE_TORCH_LIBRARY_IMPL(sparsevae_ext, SPARSEVAE_CUDA_KEY, m) {
  m.impl("kl_sparsity", TORCH_BOX(&sparsevae::cuda::kl_sparsity));
  m.impl("kl_sparsity_backward", TORCH_BOX(&sparsevae::cuda::kl_sparsity_backward));
}
