// Launchers of the topk kernels. Free of torch (see csr_linear.h).
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "float_type.h"

namespace sparsevae::cuda {

struct TopK {
  FloatType float_type;
  const void* h;       // (rows, width) contiguous
  void* values;        // (rows, k)
  int64_t* indices;    // (rows, k)
  int32_t* workspace;  // (rows, k)
  int64_t rows;
  int64_t width;  // < 2^31 - 1024
  int64_t k;      // 1 .. width
  bool by_index;
};

// out[r, indices[r, j]] = grad[r, j]; the rest of out is left alone.
struct TopKBackward {
  FloatType float_type;
  const void* grad;        // (rows, k)
  const int64_t* indices;  // (rows, k)
  void* out;               // (rows, width)
  int64_t rows;
  int64_t k;
  int64_t width;
};

// Both launch asynchronously, synchronise nothing and allocate nothing. The only atomics are
// integer counts, so equal inputs give equal bits.
cudaError_t launch_topk(const TopK& args, cudaStream_t stream);
cudaError_t launch_topk_backward(const TopKBackward& args, cudaStream_t stream);

// The double instantiations, in a file of their own (see csr_linear_kernel_f64.cu).
cudaError_t launch_topk_f64(const TopK& args, cudaStream_t stream);
cudaError_t launch_topk_backward_f64(const TopKBackward& args, cudaStream_t stream);

}  // namespace sparsevae::cuda
