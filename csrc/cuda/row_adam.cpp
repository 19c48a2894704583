// The row_adam ops on CUDA: checks, the workspace, and the launch. The contract is in
// ../ops/row_adam.cpp, the kernels in row_adam_kernel.cuh. Nothing here waits for the device.
#include "row_adam.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "../ops/row_adam.h"
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

void row_adam(const Tensor& param, const Tensor& exp_avg, const Tensor& exp_avg_sq,
              const std::optional<Tensor>& last_step, const Tensor& rows_in, const Tensor& grad_in,
              int64_t step, double beta1, double beta2, double eps, double step_size,
              double root_scale, double decay) {
  const char* op = "row_adam";
  check_row_adam(param, exp_avg, exp_avg_sq, last_step, rows_in, grad_in, step);
  const FloatType type = float_type(op, param);
  const Context context(op, param);
  const Tensor rows = contiguous(rows_in), grad = contiguous(grad_in);
  const RowAdamStep args{
      .float_type = type,
      .wide_index = rows.scalar_type() == ScalarType::Long,
      .param = param.mutable_data_ptr(),
      .exp_avg = exp_avg.mutable_data_ptr(),
      .exp_avg_sq = exp_avg_sq.mutable_data_ptr(),
      .last_step = last_step ? static_cast<int32_t*>(last_step->mutable_data_ptr()) : nullptr,
      .rows = rows.const_data_ptr(),
      .grad = grad.const_data_ptr(),
      .n_rows = param.size(0),
      .count = rows.numel(),
      .width = param.size(1),
      .step = static_cast<int32_t>(step),
      .beta1 = beta1,
      .beta2 = beta2,
      .eps = eps,
      .step_size = step_size,
      .root_scale = root_scale,
      .decay = decay};
  check_cuda(op, launch_row_adam(args, context.stream()));
}

void row_adam_catch_up(const Tensor& param, const Tensor& exp_avg, const Tensor& exp_avg_sq,
                       const Tensor& last_step, const std::optional<Tensor>& rows_in,
                       const Tensor& table, int64_t base, int64_t step, int64_t window, bool closed,
                       double beta1, double beta2, double eps) {
  const char* op = "row_adam_catch_up";
  check_row_adam_catch_up(param, exp_avg, exp_avg_sq, last_step, rows_in, table, base, step,
                          window);
  const FloatType type = float_type(op, param);
  const Context context(op, param);
  std::optional<Tensor> rows;
  if (rows_in) rows = contiguous(*rows_in);
  // In doubles, so that every entry is aligned.
  const Tensor workspace = new_empty(table, {row_adam_workspace_bytes(step - base) / 8 + 1});
  const RowAdamCatchUp args{.float_type = type,
                            .wide_index = rows && rows->scalar_type() == ScalarType::Long,
                            .param = param.mutable_data_ptr(),
                            .exp_avg = exp_avg.mutable_data_ptr(),
                            .exp_avg_sq = exp_avg_sq.mutable_data_ptr(),
                            .last_step = static_cast<int32_t*>(last_step.mutable_data_ptr()),
                            .rows = rows ? rows->const_data_ptr() : nullptr,
                            .table = static_cast<const double*>(table.const_data_ptr()),
                            .workspace = workspace.mutable_data_ptr(),
                            .n_rows = param.size(0),
                            .count = rows ? rows->numel() : param.size(0),
                            .width = param.size(1),
                            .base = static_cast<int32_t>(base),
                            .step = static_cast<int32_t>(step),
                            .window = window,
                            .closed = closed,
                            .beta1 = beta1,
                            .beta2 = beta2,
                            .eps = eps};
  check_cuda(op, launch_row_adam_catch_up(args, context.stream()));
}

}  // namespace
}  // namespace sparsevae::cuda

STABLE_TORCH_LIBRARY_IMPL(sparsevae_ext, SPARSEVAE_CUDA_KEY, m) {
  m.impl("row_adam", TORCH_BOX(&sparsevae::cuda::row_adam));
  m.impl("row_adam_catch_up", TORCH_BOX(&sparsevae::cuda::row_adam_catch_up));
}
