// The float, half and bfloat16 instantiations of the multinomial's kernels. No double arithmetic
// belongs in this file: the strict compile (tools/strict_compile.py) fails on any.
#include "multinomial_nll_kernel.cuh"

namespace sparsevae::cuda {

cudaError_t launch_multinomial_lse(const NllPanel& panel, bool is_first, void* max, void* sum,
                                   cudaStream_t stream) {
  switch (panel.type) {
    case FloatType::kFloat:
      return run_multinomial_lse<float>(panel, is_first, max, sum, stream);
    case FloatType::kHalf:
      return run_multinomial_lse<__half>(panel, is_first, max, sum, stream);
    case FloatType::kBFloat16:
      return run_multinomial_lse<__nv_bfloat16>(panel, is_first, max, sum, stream);
    case FloatType::kDouble:
      return launch_multinomial_lse_f64(panel, is_first, max, sum, stream);
  }
  return cudaErrorInvalidValue;
}

cudaError_t launch_multinomial_rows(const NllPanel& panel, const void* max, const void* sum,
                                    void* lse, void* total, cudaStream_t stream) {
  switch (panel.type) {
    case FloatType::kFloat:
      return run_multinomial_rows<float>(panel, max, sum, lse, total, stream);
    case FloatType::kHalf:
      return run_multinomial_rows<__half>(panel, max, sum, lse, total, stream);
    case FloatType::kBFloat16:
      return run_multinomial_rows<__nv_bfloat16>(panel, max, sum, lse, total, stream);
    case FloatType::kDouble:
      return launch_multinomial_rows_f64(panel, max, sum, lse, total, stream);
  }
  return cudaErrorInvalidValue;
}

cudaError_t launch_multinomial_value(const NllPanel& panel, const void* lse, cudaStream_t stream) {
  switch (panel.type) {
    case FloatType::kFloat:
      return run_multinomial_value<float>(panel, lse, stream);
    case FloatType::kHalf:
      return run_multinomial_value<__half>(panel, lse, stream);
    case FloatType::kBFloat16:
      return run_multinomial_value<__nv_bfloat16>(panel, lse, stream);
    case FloatType::kDouble:
      return launch_multinomial_value_f64(panel, lse, stream);
  }
  return cudaErrorInvalidValue;
}

cudaError_t launch_multinomial_gradient(const NllPanel& panel, const void* lse, const void* total,
                                        cudaStream_t stream) {
  switch (panel.type) {
    case FloatType::kFloat:
      return run_nll_gradient<float, MultinomialCells>(panel, stream, lse, total);
    case FloatType::kHalf:
      return run_nll_gradient<__half, MultinomialCells>(panel, stream, lse, total);
    case FloatType::kBFloat16:
      return run_nll_gradient<__nv_bfloat16, MultinomialCells>(panel, stream, lse, total);
    case FloatType::kDouble:
      return launch_multinomial_gradient_f64(panel, lse, total, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace sparsevae::cuda
