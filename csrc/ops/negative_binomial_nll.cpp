// negative_binomial_nll and zero_inflated_negative_binomial_nll: the negative log-likelihood of
// sparse rows of counts, and its gradients. The contract of the four ops.
//
//   log_mu       (B, N)  any strides
//   log_theta    (N,) or (B, N), any strides
//   zero_logits  (B, N)  of the dtype of log_mu, any strides
//   library      (B,)    with it the means are library * softmax(log_mu), else exp(log_mu)
//   crow, col, values    the target, (B, N); the columns of a row ascending and distinct
//   grad         (B,)
// log_theta, library, values, grad and all results per row are float64 for a float64 log_mu, else
// float32.
//
//   negative_binomial_nll -> nll (B,), logsumexp (B,) of log_mu, or (0,) without a library
//     With a = log_mu - log_theta (log_mu shifted by log(library) - logsumexp), a cell costs
//       theta softplus(a)                                              at x = 0,
//       theta softplus(a) + x softplus(-a) + lgamma(x + 1) - (lgamma(x + theta) - lgamma(theta))
//                                                                      else; nan for x < 0.
//   zero_inflated_negative_binomial_nll
//     With D = theta softplus(a) and pi = sigmoid(zero_logits) a cell costs
//       -log(pi + (1 - pi) exp(-D))                                    at x = 0,
//       the above + softplus(zero_logits)                              else.
//   ..._backward -> grad_log_mu, grad_log_theta, (grad_zero_logits,) grad_library
//     logsumexp is the forward op's. A result that is not wanted has shape (0,). A grad_log_theta
//     (N,) is summed over rows in an order that depends on the sizes alone.
//
// On the CPU the rows' pointers, the columns' range and their order are checked; on CUDA the
// kernels assert pointers and range.
#include "negative_binomial_nll.h"

#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY_FRAGMENT(sparsevae_ext, m) {
  m.def(
      "negative_binomial_nll(Tensor log_mu, Tensor log_theta, Tensor? library, Tensor crow, Tensor "
      "col, Tensor values) -> (Tensor, Tensor)");
  m.def(
      "negative_binomial_nll_backward(Tensor grad, Tensor log_mu, Tensor log_theta, Tensor? "
      "library, Tensor logsumexp, Tensor crow, Tensor col, Tensor values, bool wants_log_mu, bool "
      "wants_log_theta, bool wants_library) -> (Tensor, Tensor, Tensor)");
  m.def(
      "zero_inflated_negative_binomial_nll(Tensor log_mu, Tensor log_theta, Tensor zero_logits, "
      "Tensor? library, Tensor crow, Tensor col, Tensor values) -> (Tensor, Tensor)");
  m.def(
      "zero_inflated_negative_binomial_nll_backward(Tensor grad, Tensor log_mu, Tensor log_theta, "
      "Tensor zero_logits, Tensor? library, Tensor logsumexp, Tensor crow, Tensor col, Tensor "
      "values, bool wants_log_mu, bool wants_log_theta, bool wants_zero_logits, bool "
      "wants_library) -> (Tensor, Tensor, Tensor, Tensor)");
}
