// jumprelu: h where it is above a threshold per column, the number of such entries per row, and the
// straight-through gradients (Rajamanoharan et al. 2024, arXiv 2407.14435). The contract of the two
// ops.
//
//   h          (B, H)   any strides
//   threshold  (H,)     float32, or float64 for a float64 h
//   jumprelu           -> out (B, H), count (B,) in the threshold's dtype
//     active_ij = not (h_ij <= t_j): a nan is active and so passed on. out = h where active, else
//     0; count = the active entries of a row. The bandwidth is there for the derivative only.
//   jumprelu_backward  -> grad_h, grad_threshold
//     With near_ij = |h_ij - t_j| < bandwidth / 2:
//       grad_h_ij        = grad_out_ij where active, else 0
//       grad_threshold_j = -1 / bandwidth * sum over i of near_ij * (t_j * grad_out_ij +
//       grad_count_i)
//     A missing gradient counts as zeros; a result that is not wanted has shape (0,). The sum over
//     i is made in an order that depends on B alone.
#include "jumprelu.h"

#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY_FRAGMENT(sparsevae_ext, m) {
  m.def("jumprelu(Tensor h, Tensor threshold, float bandwidth) -> (Tensor, Tensor)");
  m.def(
      "jumprelu_backward(Tensor? grad_out, Tensor? grad_count, Tensor h, Tensor threshold, float "
      "bandwidth, bool wants_h, bool wants_threshold) -> (Tensor, Tensor)");
}
