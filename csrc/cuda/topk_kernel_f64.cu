// The double instantiations of the topk kernels (see csr_linear_kernel_f64.cu).
#include "topk_kernel.cuh"

namespace sparsevae::cuda {

cudaError_t launch_topk_f64(const TopK& args, cudaStream_t stream) {
  return run_topk<double>(args, stream);
}

cudaError_t launch_topk_backward_f64(const TopKBackward& args, cudaStream_t stream) {
  return run_topk_backward<double>(args, stream);
}

}  // namespace sparsevae::cuda
