// kl_sparsity: the divergence of a wished activity from each unit's mean. The contract of the ops.
//
//   h     (B, H)   values in (0, 1), any strides; made contiguous
//   rho            in (0, 1)
//
//   kl_sparsity           -> kl (), mean (H,) of each column; both float32 for 16-bit types
//   kl_sparsity_backward  -> (H,) = grad / n_rows * (-rho / mean + (1 - rho) / (1 - mean)),
//                            the gradient of every row
//
// The divergence is that of the means as returned, unclamped: a mean of exactly 0 or 1 gives inf. A
// mean outside [0, 1] is a ValueError on the CPU and gives nan on CUDA. Means are summed in blocks
// of rows whose borders depend on the shape alone.
#include "kl_sparsity.h"

#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY_FRAGMENT(sparsevae_ext, m) {
  m.def("kl_sparsity(Tensor h, float rho) -> (Tensor, Tensor)");
  m.def("kl_sparsity_backward(Tensor grad, Tensor mean, float rho, SymInt n_rows) -> Tensor");
}
