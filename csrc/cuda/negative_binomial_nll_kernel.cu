// The float, half and bfloat16 instantiations of the negative binomial kernels. No double
// arithmetic belongs in this file: the strict compile (tools/strict_compile.py) fails on any.
#include "negative_binomial_nll_kernel.cuh"

namespace sparsevae::cuda {

int64_t negative_binomial_row_blocks(int64_t rows) { return ceil_div(rows, kNbBlockRows); }

cudaError_t launch_negative_binomial_value(const NegativeBinomialPanel& panel,
                                           cudaStream_t stream) {
  switch (panel.type) {
    case FloatType::kFloat:
      return run_nb_rows<false, float>(panel, panel.nll, stream);
    case FloatType::kHalf:
      return run_nb_rows<false, __half>(panel, panel.nll, stream);
    case FloatType::kBFloat16:
      return run_nb_rows<false, __nv_bfloat16>(panel, panel.nll, stream);
    case FloatType::kDouble:
      return launch_negative_binomial_value_f64(panel, stream);
  }
  return cudaErrorInvalidValue;
}

cudaError_t launch_negative_binomial_gradient(const NegativeBinomialPanel& panel,
                                              cudaStream_t stream) {
  switch (panel.type) {
    case FloatType::kFloat:
      return run_nb_gradient<float>(panel, stream);
    case FloatType::kHalf:
      return run_nb_gradient<__half>(panel, stream);
    case FloatType::kBFloat16:
      return run_nb_gradient<__nv_bfloat16>(panel, stream);
    case FloatType::kDouble:
      return launch_negative_binomial_gradient_f64(panel, stream);
  }
  return cudaErrorInvalidValue;
}

cudaError_t launch_negative_binomial_total(const NegativeBinomialPanel& panel, void* total,
                                           cudaStream_t stream) {
  switch (panel.type) {
    case FloatType::kFloat:
      return run_nb_rows<true, float>(panel, total, stream);
    case FloatType::kHalf:
      return run_nb_rows<true, __half>(panel, total, stream);
    case FloatType::kBFloat16:
      return run_nb_rows<true, __nv_bfloat16>(panel, total, stream);
    case FloatType::kDouble:
      return launch_negative_binomial_total_f64(panel, total, stream);
  }
  return cudaErrorInvalidValue;
}

cudaError_t launch_negative_binomial_shift(const NegativeBinomialPanel& panel, const void* library,
                                           void* logsumexp, void* shift, cudaStream_t stream) {
  switch (panel.type) {
    case FloatType::kFloat:
      return run_nb_shift<float>(panel, library, logsumexp, shift, stream);
    case FloatType::kHalf:
      return run_nb_shift<__half>(panel, library, logsumexp, shift, stream);
    case FloatType::kBFloat16:
      return run_nb_shift<__nv_bfloat16>(panel, library, logsumexp, shift, stream);
    case FloatType::kDouble:
      return launch_negative_binomial_shift_f64(panel, library, logsumexp, shift, stream);
  }
  return cudaErrorInvalidValue;
}

cudaError_t launch_negative_binomial_value_and_gradient(const NegativeBinomialPanel& panel,
                                                        cudaStream_t stream) {
  const cudaError_t error = launch_negative_binomial_value(panel, stream);
  return error == cudaSuccess ? launch_negative_binomial_gradient(panel, stream) : error;
}

cudaError_t launch_negative_binomial_library(const NegativeBinomialPanel& panel,
                                             const void* library, const void* logsumexp,
                                             const void* total, void* shift, void* grad_library,
                                             cudaStream_t stream) {
  if (panel.type == FloatType::kDouble)
    return launch_negative_binomial_library_f64(panel, library, logsumexp, total, shift,
                                                grad_library, stream);
  return run_nb_library<float>(panel.rows, library, logsumexp, total, shift, grad_library, stream);
}

}  // namespace sparsevae::cuda
