// Launchers of the kl_sparsity kernels. Free of torch: raw device pointers, 64-bit sizes and a
// stream.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "activity.h"

namespace sparsevae::cuda {

// mean[j] = mean of h[:, j]; kl = sum over j of KL(rho || mean[j]). Numbers are double for kDouble,
// else float.
struct KlSparsity {
  FloatType type;
  const void* h;    // (rows, width) contiguous
  void* mean;       // (width,)
  void* kl;         // one number
  void* workspace;  // kl_sparsity_workspace() numbers, 16-byte aligned
  int64_t rows;
  int64_t width;
  double rho;
};

// out[j] = grad / rows * (-rho / mean[j] + (1 - rho) / (1 - mean[j]))
struct KlSparsityBackward {
  FloatType type;    // of the mean: kFloat or kDouble
  const void* grad;  // one number
  const void* mean;  // (width,)
  void* out;         // (width,)
  int64_t rows;
  int64_t width;
  double rho;
};

// Both launch asynchronously on `stream`, synchronise nothing and allocate nothing. How the sums
// are split depends on the sizes alone, and nothing is added atomically.
int64_t kl_sparsity_workspace(int64_t rows, int64_t width);
cudaError_t launch_kl_sparsity(const KlSparsity& args, cudaStream_t stream);
cudaError_t launch_kl_sparsity_backward(const KlSparsityBackward& args, cudaStream_t stream);

// The double instantiations, in a file of their own (see csr_linear_kernel_f64.cu).
cudaError_t launch_kl_sparsity_f64(const KlSparsity& args, cudaStream_t stream);
cudaError_t launch_kl_sparsity_backward_f64(const KlSparsityBackward& args, cudaStream_t stream);

}  // namespace sparsevae::cuda
