// Launchers of the reparameterize_kl kernels. Free of torch: raw device pointers, 64-bit sizes and
// a stream. The ops' contract is in ../ops/reparameterize_kl.cpp.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "float_type.h"

namespace sparsevae::cuda {

// T is the dtype of float_type, A float, or double for double. What is not given is null. Matrices
// are contiguous; a sample is a matrix of its own behind the one before.
struct ReparameterizeKl {
  FloatType float_type;
  const void* mu;            // T (rows, width)
  const void* logvar;        // T (rows, width)
  const int64_t* seed;       // (2,), on the device; null when eps is given
  const void* eps;           // A (samples, rows, width)
  const void* prior_mean;    // A (width,)
  const void* prior_logvar;  // A (width,)
  const bool* counted;       // (width,)
  double free_bits;
  double logvar_max;  // inf without a bound
  int64_t rows;
  int64_t width;
  int64_t samples;
  int64_t draw_rows;
  // forward
  void* z;   // T (samples, rows, width)
  void* kl;  // A (rows,)
  // backward
  const void* grad_z;   // T (samples, rows, width)
  const void* grad_kl;  // A (rows,)
  void* grad_mu;        // T (rows, width)
  void* grad_logvar;    // T (rows, width)
  // which dimensions count
  void* workspace;  // counted_workspace_bytes(), 16-byte aligned
  bool* mask;       // (width,)
};

// All launch asynchronously on `stream`, read nothing back and allocate nothing. Sums are made in
// an order that depends on the sizes alone: equal inputs give equal bits.
cudaError_t launch_reparameterize_kl(const ReparameterizeKl& args, cudaStream_t stream);
cudaError_t launch_reparameterize_kl_backward(const ReparameterizeKl& args, cudaStream_t stream);
int64_t counted_workspace_bytes(const ReparameterizeKl& args);
cudaError_t launch_reparameterize_kl_counted(const ReparameterizeKl& args, cudaStream_t stream);

// The double instantiations, in a file of their own (see reparameterize_kl_kernel_f64.cu).
cudaError_t launch_reparameterize_kl_f64(const ReparameterizeKl& args, cudaStream_t stream);
cudaError_t launch_reparameterize_kl_backward_f64(const ReparameterizeKl& args,
                                                  cudaStream_t stream);
cudaError_t launch_reparameterize_kl_counted_f64(const ReparameterizeKl& args, cudaStream_t stream);

}  // namespace sparsevae::cuda
