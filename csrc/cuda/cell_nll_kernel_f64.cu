// The double instantiations of the kernels of bernoulli_nll, poisson_nll and gaussian_nll (see
// csr_linear_kernel_f64.cu); and the value of poisson_nll for every type, whose changes at the
// entries are made in double (see nll_math.cuh).
#include "cell_nll.h"
#include "column_sums_kernel.cuh"
#include "nll_gradient_kernel.cuh"
#include "nll_value_kernel.cuh"

namespace sparsevae::cuda {

cudaError_t launch_poisson_value(const NllPanel& panel, cudaStream_t stream) {
  switch (panel.type) {
    case FloatType::kFloat:
      return run_nll_value<float, PoissonCells>(panel, stream);
    case FloatType::kHalf:
      return run_nll_value<__half, PoissonCells>(panel, stream);
    case FloatType::kBFloat16:
      return run_nll_value<__nv_bfloat16, PoissonCells>(panel, stream);
    case FloatType::kDouble:
      return run_nll_value<double, PoissonCells>(panel, stream);
  }
  return cudaErrorInvalidValue;
}

cudaError_t launch_bernoulli_value_f64(const NllPanel& panel, cudaStream_t stream) {
  return run_nll_value<double, BernoulliCells>(panel, stream);
}

cudaError_t launch_bernoulli_gradient_f64(const NllPanel& panel, cudaStream_t stream) {
  return run_nll_gradient<double, BernoulliCells>(panel, stream);
}

cudaError_t launch_poisson_gradient_f64(const NllPanel& panel, cudaStream_t stream) {
  return run_nll_gradient<double, PoissonCells>(panel, stream);
}

cudaError_t launch_gaussian_value_f64(const NllPanel& panel, cudaStream_t stream) {
  return panel.x2 ? run_nll_value<double, GaussianCells<true>>(panel, stream)
                  : run_nll_value<double, GaussianCells<false>>(panel, stream);
}

cudaError_t launch_gaussian_gradient_f64(const NllPanel& panel, cudaStream_t stream) {
  return panel.x2 ? run_nll_gradient<double, GaussianCells<true>>(panel, stream)
                  : run_nll_gradient<double, GaussianCells<false>>(panel, stream);
}

cudaError_t launch_column_sums_f64(const void* matrix, int64_t rows, int64_t cols, void* workspace,
                                   void* out, cudaStream_t stream) {
  return run_column_sums<double>(matrix, rows, cols, workspace, out, stream);
}

}  // namespace sparsevae::cuda
