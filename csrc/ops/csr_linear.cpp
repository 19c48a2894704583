// csr_linear: y = X W^T + b with X a CSR matrix, and its gradients. The contract of the four ops.
//
//   X            (B, N)   crow (B+1,), col (nnz,), values (nnz,); columns in any order, duplicates
//   add up weight       (H, N)   any strides; read without a copy when each feature's H numbers are
//   contiguous grad_output  (B, H)
//
//   csr_linear                  -> (B, H)    a stored zero multiplies, an implicit zero never does
//   csr_linear_weight_grad      -> (N, H)    dense; the caller transposes it to weight's logical
//   shape csr_linear_weight_grad_rows -> (U, H)    the rows of the U features that the index lists
//   csr_linear_values_grad      -> (nnz,)
//
// The weight gradient runs over the transposed index (see csr_transpose.cpp): each touched
// feature's row is summed in one place, in entry order, so that nothing is added atomically and the
// result does not depend on the number of threads. 16-bit types accumulate in float32.
#include "csr_linear.h"

#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY_FRAGMENT(sparsevae_ext, m) {
  m.def(
      "csr_linear(Tensor crow, Tensor col, Tensor values, Tensor weight, Tensor? bias) -> Tensor");
  m.def(
      "csr_linear_weight_grad(Tensor features, Tensor ptr, Tensor row, Tensor perm, Tensor values, "
      "Tensor grad_output, SymInt in_features) -> Tensor");
  m.def(
      "csr_linear_weight_grad_rows(Tensor ptr, Tensor row, Tensor perm, Tensor values, "
      "Tensor grad_output) -> Tensor");
  m.def(
      "csr_linear_values_grad(Tensor crow, Tensor col, Tensor weight, Tensor grad_output) -> "
      "Tensor");
}
