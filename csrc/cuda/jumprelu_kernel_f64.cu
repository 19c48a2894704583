// The double instantiations of the jumprelu kernels (see csr_linear_kernel_f64.cu).
#include "jumprelu_kernel.cuh"

namespace sparsevae::cuda {

cudaError_t launch_jumprelu_f64(const JumpReLU& args, cudaStream_t stream) {
  return run_jumprelu<double>(args, stream);
}

cudaError_t launch_jumprelu_backward_f64(const JumpReLUBackward& args, cudaStream_t stream) {
  return run_jumprelu_backward<double>(args, stream);
}

}  // namespace sparsevae::cuda
