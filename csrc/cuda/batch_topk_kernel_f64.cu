// The double instantiations of the batch_topk kernels (see csr_linear_kernel_f64.cu).
#include "batch_topk_kernel.cuh"

namespace sparsevae::cuda {

cudaError_t launch_batch_topk_f64(const BatchTopK& args, cudaStream_t stream) {
  return run_batch_topk<double>(args, stream);
}

cudaError_t launch_batch_topk_backward_f64(const BatchTopKBackward& args, cudaStream_t stream) {
  return run_batch_topk_backward<double>(args, stream);
}

}  // namespace sparsevae::cuda
