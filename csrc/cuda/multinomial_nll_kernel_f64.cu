// The double instantiations of the multinomial's kernels (see csr_linear_kernel_f64.cu).
#include "multinomial_nll_kernel.cuh"

namespace sparsevae::cuda {

cudaError_t launch_multinomial_lse_f64(const NllPanel& panel, bool is_first, void* max, void* sum,
                                       cudaStream_t stream) {
  return run_multinomial_lse<double>(panel, is_first, max, sum, stream);
}

cudaError_t launch_multinomial_rows_f64(const NllPanel& panel, const void* max, const void* sum,
                                        void* lse, void* total, cudaStream_t stream) {
  return run_multinomial_rows<double>(panel, max, sum, lse, total, stream);
}

cudaError_t launch_multinomial_value_f64(const NllPanel& panel, const void* lse,
                                         cudaStream_t stream) {
  return run_multinomial_value<double>(panel, lse, stream);
}

cudaError_t launch_multinomial_gradient_f64(const NllPanel& panel, const void* lse,
                                            const void* total, cudaStream_t stream) {
  return run_nll_gradient<double, MultinomialCells>(panel, stream, lse, total);
}

}  // namespace sparsevae::cuda
