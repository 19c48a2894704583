// The double instantiations of the negative binomial kernels (see csr_linear_kernel_f64.cu).
#include "negative_binomial_nll_kernel.cuh"

namespace sparsevae::cuda {

cudaError_t launch_negative_binomial_value_f64(const NegativeBinomialPanel& panel,
                                               cudaStream_t stream) {
  return run_nb_rows<false, double>(panel, panel.nll, stream);
}

cudaError_t launch_negative_binomial_gradient_f64(const NegativeBinomialPanel& panel,
                                                  cudaStream_t stream) {
  return run_nb_gradient<double>(panel, stream);
}

cudaError_t launch_negative_binomial_total_f64(const NegativeBinomialPanel& panel, void* total,
                                               cudaStream_t stream) {
  return run_nb_rows<true, double>(panel, total, stream);
}

cudaError_t launch_negative_binomial_shift_f64(const NegativeBinomialPanel& panel,
                                               const void* library, void* logsumexp, void* shift,
                                               cudaStream_t stream) {
  return run_nb_shift<double>(panel, library, logsumexp, shift, stream);
}

cudaError_t launch_negative_binomial_library_f64(const NegativeBinomialPanel& panel,
                                                 const void* library, const void* logsumexp,
                                                 const void* total, void* shift, void* grad_library,
                                                 cudaStream_t stream) {
  return run_nb_library<double>(panel.rows, library, logsumexp, total, shift, grad_library, stream);
}

}  // namespace sparsevae::cuda
