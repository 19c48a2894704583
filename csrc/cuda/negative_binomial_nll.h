// Launchers of the (zero-inflated) negative binomial likelihood (contract:
// ../ops/negative_binomial_nll.cpp). Free of torch.
//
// All launch asynchronously on `stream`, synchronise nothing and allocate nothing. Sums are made in
// an order that the sizes decide, never the device. The columns of a row must be ascending and
// distinct.
#pragma once

#include <cuda_runtime_api.h>

#include "nll_panel.h"

namespace sparsevae::cuda {

// Zero-inflated where x2 is not null. Gradients not wanted are null.
struct NegativeBinomialPanel : NllPanel {
  // acc. Where every cell has its log_theta (ld_theta > 0): row r at grad_log_theta + r * ld_theta.
  // Else (cols,), the sum over rows, by way of theta_sums, (negative_binomial_row_blocks(rows),
  // cols).
  void* grad_log_theta = nullptr;
  void* theta_sums = nullptr;
  // A mean of library * softmax(x), where `shift` is log(library) - logsumexp: acc (rows,), the
  // latter and launch_negative_binomial_total's result, for the gradient in x. Else null.
  const void* logsumexp = nullptr;
  const void* total = nullptr;
};

int64_t negative_binomial_row_blocks(int64_t rows);

// nll[row] += the cost of the panel's cells.
cudaError_t launch_negative_binomial_value(const NegativeBinomialPanel& panel, cudaStream_t stream);
// Writes grad, grad2 and grad_log_theta, multiplied by weight.
cudaError_t launch_negative_binomial_gradient(const NegativeBinomialPanel& panel,
                                              cudaStream_t stream);
// Both, one after the other; the gradient may be in place.
cudaError_t launch_negative_binomial_value_and_gradient(const NegativeBinomialPanel& panel,
                                                        cudaStream_t stream);
// total[row] += the sum of the gradient in the shifted x: d nll / d log(library), times weight.
cudaError_t launch_negative_binomial_total(const NegativeBinomialPanel& panel, void* total,
                                           cudaStream_t stream);
// Of whole rows: logsumexp[row], and shift[row] = log(library[row]) - logsumexp[row] unless null.
cudaError_t launch_negative_binomial_shift(const NegativeBinomialPanel& panel, const void* library,
                                           void* logsumexp, void* shift, cudaStream_t stream);

// For the backward pass, where not null: shift = log(library) - logsumexp, grad_library = total /
// library. All acc (rows,).
cudaError_t launch_negative_binomial_library(const NegativeBinomialPanel& panel,
                                             const void* library, const void* logsumexp,
                                             const void* total, void* shift, void* grad_library,
                                             cudaStream_t stream);

// The double instantiations, in a file of their own (see csr_linear_kernel_f64.cu).
cudaError_t launch_negative_binomial_value_f64(const NegativeBinomialPanel& panel,
                                               cudaStream_t stream);
cudaError_t launch_negative_binomial_gradient_f64(const NegativeBinomialPanel& panel,
                                                  cudaStream_t stream);
cudaError_t launch_negative_binomial_total_f64(const NegativeBinomialPanel& panel, void* total,
                                               cudaStream_t stream);
cudaError_t launch_negative_binomial_shift_f64(const NegativeBinomialPanel& panel,
                                               const void* library, void* logsumexp, void* shift,
                                               cudaStream_t stream);
cudaError_t launch_negative_binomial_library_f64(const NegativeBinomialPanel& panel,
                                                 const void* library, const void* logsumexp,
                                                 const void* total, void* shift, void* grad_library,
                                                 cudaStream_t stream);

}  // namespace sparsevae::cuda
