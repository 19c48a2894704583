// The float, half and bfloat16 instantiations of the kernels of bernoulli_nll, poisson_nll and
// gaussian_nll. No double arithmetic belongs in this file: the strict compile
// (tools/strict_compile.py) fails on any.
#include "cell_nll.h"
#include "column_sums_kernel.cuh"
#include "nll_gradient_kernel.cuh"
#include "nll_value_kernel.cuh"

namespace sparsevae::cuda {
namespace {

using Launcher = cudaError_t (*)(const NllPanel&, cudaStream_t);

// The value first: the gradient may overwrite the predictions.
cudaError_t both(Launcher value, Launcher gradient, const NllPanel& panel, cudaStream_t stream) {
  const cudaError_t error = value(panel, stream);
  return error == cudaSuccess ? gradient(panel, stream) : error;
}

}  // namespace

cudaError_t launch_bernoulli_value(const NllPanel& panel, cudaStream_t stream) {
  switch (panel.type) {
    case FloatType::kFloat:
      return run_nll_value<float, BernoulliCells>(panel, stream);
    case FloatType::kHalf:
      return run_nll_value<__half, BernoulliCells>(panel, stream);
    case FloatType::kBFloat16:
      return run_nll_value<__nv_bfloat16, BernoulliCells>(panel, stream);
    case FloatType::kDouble:
      return launch_bernoulli_value_f64(panel, stream);
  }
  return cudaErrorInvalidValue;
}

cudaError_t launch_bernoulli_gradient(const NllPanel& panel, cudaStream_t stream) {
  switch (panel.type) {
    case FloatType::kFloat:
      return run_nll_gradient<float, BernoulliCells>(panel, stream);
    case FloatType::kHalf:
      return run_nll_gradient<__half, BernoulliCells>(panel, stream);
    case FloatType::kBFloat16:
      return run_nll_gradient<__nv_bfloat16, BernoulliCells>(panel, stream);
    case FloatType::kDouble:
      return launch_bernoulli_gradient_f64(panel, stream);
  }
  return cudaErrorInvalidValue;
}

cudaError_t launch_bernoulli_value_and_gradient(const NllPanel& panel, cudaStream_t stream) {
  return both(launch_bernoulli_value, launch_bernoulli_gradient, panel, stream);
}

cudaError_t launch_poisson_gradient(const NllPanel& panel, cudaStream_t stream) {
  switch (panel.type) {
    case FloatType::kFloat:
      return run_nll_gradient<float, PoissonCells>(panel, stream);
    case FloatType::kHalf:
      return run_nll_gradient<__half, PoissonCells>(panel, stream);
    case FloatType::kBFloat16:
      return run_nll_gradient<__nv_bfloat16, PoissonCells>(panel, stream);
    case FloatType::kDouble:
      return launch_poisson_gradient_f64(panel, stream);
  }
  return cudaErrorInvalidValue;
}

cudaError_t launch_poisson_value_and_gradient(const NllPanel& panel, cudaStream_t stream) {
  return both(launch_poisson_value, launch_poisson_gradient, panel, stream);
}

cudaError_t launch_gaussian_value(const NllPanel& panel, cudaStream_t stream) {
  switch (panel.type) {
    case FloatType::kFloat:
      return panel.x2 ? run_nll_value<float, GaussianCells<true>>(panel, stream)
                      : run_nll_value<float, GaussianCells<false>>(panel, stream);
    case FloatType::kHalf:
      return panel.x2 ? run_nll_value<__half, GaussianCells<true>>(panel, stream)
                      : run_nll_value<__half, GaussianCells<false>>(panel, stream);
    case FloatType::kBFloat16:
      return panel.x2 ? run_nll_value<__nv_bfloat16, GaussianCells<true>>(panel, stream)
                      : run_nll_value<__nv_bfloat16, GaussianCells<false>>(panel, stream);
    case FloatType::kDouble:
      return launch_gaussian_value_f64(panel, stream);
  }
  return cudaErrorInvalidValue;
}

cudaError_t launch_gaussian_gradient(const NllPanel& panel, cudaStream_t stream) {
  switch (panel.type) {
    case FloatType::kFloat:
      return panel.x2 ? run_nll_gradient<float, GaussianCells<true>>(panel, stream)
                      : run_nll_gradient<float, GaussianCells<false>>(panel, stream);
    case FloatType::kHalf:
      return panel.x2 ? run_nll_gradient<__half, GaussianCells<true>>(panel, stream)
                      : run_nll_gradient<__half, GaussianCells<false>>(panel, stream);
    case FloatType::kBFloat16:
      return panel.x2 ? run_nll_gradient<__nv_bfloat16, GaussianCells<true>>(panel, stream)
                      : run_nll_gradient<__nv_bfloat16, GaussianCells<false>>(panel, stream);
    case FloatType::kDouble:
      return launch_gaussian_gradient_f64(panel, stream);
  }
  return cudaErrorInvalidValue;
}

cudaError_t launch_gaussian_value_and_gradient(const NllPanel& panel, cudaStream_t stream) {
  return both(launch_gaussian_value, launch_gaussian_gradient, panel, stream);
}

int64_t column_blocks(int64_t rows) { return ceil_div(rows, kColumnSumRows); }

cudaError_t launch_column_sums(FloatType type, const void* matrix, int64_t rows, int64_t cols,
                               void* workspace, void* out, cudaStream_t stream) {
  switch (type) {
    case FloatType::kFloat:
      return run_column_sums<float>(matrix, rows, cols, workspace, out, stream);
    case FloatType::kHalf:
      return run_column_sums<__half>(matrix, rows, cols, workspace, out, stream);
    case FloatType::kBFloat16:
      return run_column_sums<__nv_bfloat16>(matrix, rows, cols, workspace, out, stream);
    case FloatType::kDouble:
      return launch_column_sums_f64(matrix, rows, cols, workspace, out, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace sparsevae::cuda
