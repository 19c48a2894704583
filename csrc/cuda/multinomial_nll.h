// Launchers of the multinomial likelihood (contract: ../ops/multinomial_nll.cpp). Free of torch.
//
// All launch asynchronously on `stream`, synchronise nothing and allocate nothing. "acc" as in
// nll_panel.h; max, sum, lse and total are acc (rows,).
#pragma once

#include <cuda_runtime_api.h>

#include "nll_panel.h"

namespace sparsevae::cuda {

// Merges the panel into a running maximum and a running sum of exp(x - maximum). `is_first`: there
// is nothing to merge with, max and sum are only written.
cudaError_t launch_multinomial_lse(const NllPanel& panel, bool is_first, void* max, void* sum,
                                   cudaStream_t stream);
// After the last panel: lse = max + log(sum), and total = the sum of the row's values. Reads only
// crow, values, nnz, rows, type and wide_index of the panel; max may be lse and sum may be total.
cudaError_t launch_multinomial_rows(const NllPanel& panel, const void* max, const void* sum,
                                    void* lse, void* total, cudaStream_t stream);
// nll[row] += sum over the panel's entries of value * (lse - x).
cudaError_t launch_multinomial_value(const NllPanel& panel, const void* lse, cudaStream_t stream);
// grad = weight * (total * exp(x - lse) - value); a row without entries has gradient zero.
cudaError_t launch_multinomial_gradient(const NllPanel& panel, const void* lse, const void* total,
                                        cudaStream_t stream);

// The double instantiations, in a file of their own (see csr_linear_kernel_f64.cu).
cudaError_t launch_multinomial_lse_f64(const NllPanel& panel, bool is_first, void* max, void* sum,
                                       cudaStream_t stream);
cudaError_t launch_multinomial_rows_f64(const NllPanel& panel, const void* max, const void* sum,
                                        void* lse, void* total, cudaStream_t stream);
cudaError_t launch_multinomial_value_f64(const NllPanel& panel, const void* lse,
                                         cudaStream_t stream);
cudaError_t launch_multinomial_gradient_f64(const NllPanel& panel, const void* lse,
                                            const void* total, cudaStream_t stream);

}  // namespace sparsevae::cuda
