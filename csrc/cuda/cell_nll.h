// Launchers of the likelihoods that are sums over cells (contract: ../ops/cell_nll.cpp). Free of
// torch.
//
// All launch asynchronously on `stream`, synchronise nothing and allocate nothing. A row is summed
// in an order that its width decides, never the device. Gradients not wanted are null. The panel of
// an in-place gradient may go through launch_*_value_and_gradient, which reads before it writes.
#pragma once

#include <cuda_runtime_api.h>

#include "nll_panel.h"

namespace sparsevae::cuda {

// nll[row] += sum_j softplus(x) + sum over the entries of value * (softplus(-x) - softplus(x)).
cudaError_t launch_bernoulli_value(const NllPanel& panel, cudaStream_t stream);
// grad = weight * (sigmoid(x) - value)
cudaError_t launch_bernoulli_gradient(const NllPanel& panel, cudaStream_t stream);
cudaError_t launch_bernoulli_value_and_gradient(const NllPanel& panel, cudaStream_t stream);

// nll[row] += sum_j exp(x) + sum over the entries of log Gamma(value + 1) - value * x.
cudaError_t launch_poisson_value(const NllPanel& panel, cudaStream_t stream);
// grad = weight * (exp(x) - value)
cudaError_t launch_poisson_gradient(const NllPanel& panel, cudaStream_t stream);
cudaError_t launch_poisson_value_and_gradient(const NllPanel& panel, cudaStream_t stream);

// nll[row] += 1/2 sum_j (v + (value - x)^2 exp(-v)), v = x2 or 0; without log(2 pi) / 2 a column.
cudaError_t launch_gaussian_value(const NllPanel& panel, cudaStream_t stream);
// grad = weight * (x - value) exp(-v); grad2 = weight / 2 * (1 - (value - x)^2 exp(-v))
cudaError_t launch_gaussian_gradient(const NllPanel& panel, cudaStream_t stream);
cudaError_t launch_gaussian_value_and_gradient(const NllPanel& panel, cudaStream_t stream);

// out[j] = sum over the rows of a contiguous (rows, cols) matrix; out and workspace (column_blocks(
// rows), cols) are acc. The order depends on `rows` alone.
int64_t column_blocks(int64_t rows);
cudaError_t launch_column_sums(FloatType type, const void* matrix, int64_t rows, int64_t cols,
                               void* workspace, void* out, cudaStream_t stream);

// The double instantiations, in files of their own (see csr_linear_kernel_f64.cu).
cudaError_t launch_bernoulli_value_f64(const NllPanel& panel, cudaStream_t stream);
cudaError_t launch_bernoulli_gradient_f64(const NllPanel& panel, cudaStream_t stream);
cudaError_t launch_poisson_gradient_f64(const NllPanel& panel, cudaStream_t stream);
cudaError_t launch_gaussian_value_f64(const NllPanel& panel, cudaStream_t stream);
cudaError_t launch_gaussian_gradient_f64(const NllPanel& panel, cudaStream_t stream);
cudaError_t launch_column_sums_f64(const void* matrix, int64_t rows, int64_t cols, void* workspace,
                                   void* out, cudaStream_t stream);

}  // namespace sparsevae::cuda
