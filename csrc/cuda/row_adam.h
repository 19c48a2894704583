// Launchers of the row_adam kernels. Free of torch (see csr_linear.h).
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "float_type.h"

namespace sparsevae::cuda {

struct RowAdamStep {
  FloatType float_type;
  bool wide_index;  // of rows: int64, else int32
  void* param;      // (n_rows, width), as the moments
  void* exp_avg;
  void* exp_avg_sq;
  int32_t* last_step;  // (n_rows, 2) or null
  const void* rows;    // (count,)
  const void* grad;    // (count, width)
  int64_t n_rows;
  int64_t count;
  int64_t width;
  int32_t step;
  double beta1, beta2, eps, step_size, root_scale, decay;
};

struct RowAdamCatchUp {
  FloatType float_type;
  bool wide_index;
  void* param;
  void* exp_avg;
  void* exp_avg_sq;
  int32_t* last_step;
  const void* rows;     // (count,), or null for all rows of the table
  const double* table;  // (newest + 1, kRowAdamColumns)
  void* workspace;      // row_adam_workspace_bytes(newest)
  int64_t n_rows;
  int64_t count;  // n_rows without `rows`
  int64_t width;
  int32_t base, step;
  int64_t window;
  bool closed;
  double beta1, beta2, eps;
};

// Room for the gap that begins after each step of the table, and for each step's facts.
int64_t row_adam_workspace_bytes(int64_t newest);

cudaError_t launch_row_adam(const RowAdamStep& args, cudaStream_t stream);
cudaError_t launch_row_adam_catch_up(const RowAdamCatchUp& args, cudaStream_t stream);

// In a file of their own, because they compute in double (see csr_linear_kernel_f64.cu).
cudaError_t launch_row_adam_f64(const RowAdamStep& args, cudaStream_t stream);
cudaError_t launch_row_adam_catch_up_f64(const RowAdamCatchUp& args, cudaStream_t stream);
// Fills the workspace from the table, which is float64 for every element type.
cudaError_t launch_row_adam_gaps(const RowAdamCatchUp& args, cudaStream_t stream);

}  // namespace sparsevae::cuda
