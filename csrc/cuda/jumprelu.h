// Launchers of the jumprelu kernels. Free of torch (see csr_linear.h).
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "float_type.h"

namespace sparsevae::cuda {

// `wide` is float, or double for double.
struct JumpReLU {
  FloatType float_type;
  const void* h;          // (rows, width) contiguous
  const void* threshold;  // (width,) wide
  void* out;              // (rows, width)
  void* count;            // (rows,) wide
  int64_t rows;
  int64_t width;
};

struct JumpReLUBackward {
  FloatType float_type;
  const void* grad_out;    // (rows, width) or null for zeros
  const void* grad_count;  // (rows,) wide, or null for zeros
  const void* h;           // (rows, width)
  const void* threshold;   // (width,) wide
  void* grad_h;            // (rows, width), or null when not wanted
  void* grad_threshold;    // (width,) wide, or null when not wanted
  void* workspace;         // jumprelu_row_blocks(rows) * width wide numbers; null without threshold
  double bandwidth;
  int64_t rows;
  int64_t width;
};

// The number of blocks of rows whose sums the workspace holds. It depends on `rows` alone, and so
// do the bits of the threshold's gradient.
int64_t jumprelu_row_blocks(int64_t rows);

cudaError_t launch_jumprelu(const JumpReLU& args, cudaStream_t stream);
cudaError_t launch_jumprelu_backward(const JumpReLUBackward& args, cudaStream_t stream);

// The double instantiations, in a file of their own (see csr_linear_kernel_f64.cu).
cudaError_t launch_jumprelu_f64(const JumpReLU& args, cudaStream_t stream);
cudaError_t launch_jumprelu_backward_f64(const JumpReLUBackward& args, cudaStream_t stream);

}  // namespace sparsevae::cuda
