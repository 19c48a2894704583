// multinomial_nll: the multinomial negative log-likelihood of a sparse target, from logits, and the
// gradient of the logits. The contract of the two ops.
//
//   logits                    (B, N)  any strides
//   crow, col, values         the target, CSR of (B, N); columns in any order, duplicates count one
//                             by one; values of what the logits are computed in: float, or double
//                             beside double logits
//   multinomial_nll           -> nll (B,), lse (B,), total (B,), in the dtype of the values
//     lse_i = log sum_j exp(l_ij); total_i = sum of the row's values;
//     nll_i = sum over the entries of value * (lse_i - l_ij), 0 for a row without entries.
//   multinomial_nll_backward  -> grad_logits (B, N), in the dtype of the logits
//     grad_i * (total_i * exp(l_ij - lse_i) - value at the entries), rounded once; where a row has
//     no entries, lse counts as inf. grad (B,) is in the dtype of the values.
//
// On the CPU a column outside [0, N) is an IndexError and a damaged crow a RuntimeError; on CUDA
// both trip a device assert before anything is read through them. A row is summed in an order that
// depends on its width alone, so equal inputs give equal bits.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY_FRAGMENT(sparsevae_ext, m) {
  m.def(
      "multinomial_nll(Tensor logits, Tensor crow, Tensor col, Tensor values) -> (Tensor, Tensor, "
      "Tensor)");
  m.def(
      "multinomial_nll_backward(Tensor grad, Tensor logits, Tensor lse, Tensor total, Tensor crow, "
      "Tensor col, Tensor values) -> Tensor");
}
