// The double instantiations of the kl_sparsity kernels, apart from the others so that the strict
// compile can reject double arithmetic there, where it would be an accident.
#include "kl_sparsity_kernel.cuh"

namespace sparsevae::cuda {

cudaError_t launch_kl_sparsity_f64(const KlSparsity& args, cudaStream_t stream) {
  return kl_sparsity_of<double>(args, stream);
}

cudaError_t launch_kl_sparsity_backward_f64(const KlSparsityBackward& args, cudaStream_t stream) {
  return kl_sparsity_backward_of<double>(args, stream);
}

}  // namespace sparsevae::cuda
