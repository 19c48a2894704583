// Launchers of the batch_topk kernels. Free of torch (see csr_linear.h).
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "float_type.h"

namespace sparsevae::cuda {

struct BatchTopK {
  FloatType float_type;
  const void* h;       // (entries,)
  void* out;           // (entries,)
  void* threshold;     // one number of h's type
  int64_t* kept;       // (count,)
  int64_t* workspace;  // batch_topk_workspace(entries) numbers
  int64_t entries;
  int64_t count;  // 1 .. entries
};

// out[kept[j]] = grad[kept[j]]; the rest of out is left alone.
struct BatchTopKBackward {
  FloatType float_type;
  const void* grad;     // (entries,)
  const int64_t* kept;  // (count,)
  void* out;            // (entries,)
  int64_t entries;
  int64_t count;
};

int64_t batch_topk_workspace(int64_t entries);

// Both launch asynchronously, synchronise nothing and allocate nothing. The only atomics are
// integer counts, so equal inputs give equal bits.
cudaError_t launch_batch_topk(const BatchTopK& args, cudaStream_t stream);
cudaError_t launch_batch_topk_backward(const BatchTopKBackward& args, cudaStream_t stream);

// The double instantiations, in a file of their own (see csr_linear_kernel_f64.cu).
cudaError_t launch_batch_topk_f64(const BatchTopK& args, cudaStream_t stream);
cudaError_t launch_batch_topk_backward_f64(const BatchTopKBackward& args, cudaStream_t stream);

}  // namespace sparsevae::cuda
