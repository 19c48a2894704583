// Launchers of the activity kernels. Free of torch: raw device pointers, 64-bit sizes and a stream.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "../common/activation.h"
#include "float_type.h"

namespace sparsevae::cuda {

// activated = f(h), penalty[row] = sum |activated| (order 1) or activated^2 (order 2) of a row.
struct ActivityForward {
  FloatType type;
  const void* h;    // (rows, width) contiguous
  void* activated;  // (rows, width) contiguous
  void* penalty;    // (rows,) double for kDouble, else float
  int64_t rows;
  int64_t width;
  Activation activation;
  int order;
};

// grad_h = (grad_activated + grad_penalty * slope of the penalty) * f', all from activated = f(h).
struct ActivityBackward {
  FloatType type;
  const void* grad_activated;  // (rows, width) contiguous, or null
  const void* grad_penalty;    // (rows,) double for kDouble, else float; or null
  const void* activated;       // (rows, width) contiguous
  void* grad_h;                // (rows, width) contiguous
  int64_t rows;
  int64_t width;
  Activation activation;
  int order;
};

// Both launch asynchronously on `stream`, synchronise nothing and allocate nothing. A row is summed
// in an order that its width and alignment decide, never the device.
cudaError_t launch_activity_forward(const ActivityForward& args, cudaStream_t stream);
cudaError_t launch_activity_backward(const ActivityBackward& args, cudaStream_t stream);

// The double instantiations, in a file of their own (see csr_linear_kernel_f64.cu).
cudaError_t launch_activity_forward_f64(const ActivityForward& args, cudaStream_t stream);
cudaError_t launch_activity_backward_f64(const ActivityBackward& args, cudaStream_t stream);

}  // namespace sparsevae::cuda
