// The double instantiations of the reparameterize_kl kernels. They are apart from the others so
// that the strict compile can reject double arithmetic there, where it would be an accident.
#include "reparameterize_kl_kernel.cuh"

namespace sparsevae::cuda {

cudaError_t launch_reparameterize_kl_f64(const ReparameterizeKl& args, cudaStream_t stream) {
  return launch_forward<double>(args, stream);
}

cudaError_t launch_reparameterize_kl_backward_f64(const ReparameterizeKl& args,
                                                  cudaStream_t stream) {
  return launch_backward<double>(args, stream);
}

cudaError_t launch_reparameterize_kl_counted_f64(const ReparameterizeKl& args,
                                                 cudaStream_t stream) {
  return launch_counted<double>(args, stream);
}

}  // namespace sparsevae::cuda
