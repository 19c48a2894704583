// bernoulli_nll, poisson_nll and gaussian_nll: negative log-likelihoods of a sparse target that are
// sums over cells, and the gradients of the predictions. The contract of the six ops.
//
//   logits, log_rate, mean  (B, N)  any strides
//   logvar                  (B, N) or (N,), of the dtype of the mean; missing: unit variance
//   crow, col, values       as in multinomial_nll.cpp
//   bernoulli_nll           -> nll (B,) = sum_j softplus(l) + sum over the entries of
//                              value * (softplus(-l) - softplus(l))
//   poisson_nll             -> nll (B,) = sum_j exp(l) + sum over the entries of
//                              log Gamma(value + 1) - value * l
//   gaussian_nll            -> nll (B,) = 1/2 [sum_j (v + m^2 exp(-v)) + sum over the entries of
//                              exp(-v) ((value - m)^2 - m^2)]; without the constant log(2 pi) / 2
//     in the dtype of the values. The dense sums are kept so that what an entry takes away again
//     leaves no error behind (in double on the CPU, in two floats on CUDA).
//   *_backward              -> the gradient (B, N), in the dtype of the predictions:
//     grad_i * (sigmoid(l) - value), grad_i * (exp(l) - value), grad_i * (m - value) * exp(-v)
//   gaussian_nll_backward   -> grad_mean, grad_logvar; each of shape (0,) where not wanted
//     grad_logvar = grad_i / 2 * (1 - (value - m)^2 exp(-v)), as (B, N) in the dtype of logvar; for
//     a logvar (N,) its sum over rows, as (N,) in the dtype of the values, in an order that depends
//     on the shape alone.
//
// Checks of the target and determinism are as in multinomial_nll.cpp.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY_FRAGMENT(sparsevae_ext, m) {
  m.def("bernoulli_nll(Tensor logits, Tensor crow, Tensor col, Tensor values) -> Tensor");
  m.def(
      "bernoulli_nll_backward(Tensor grad, Tensor logits, Tensor crow, Tensor col, Tensor values) "
      "-> Tensor");
  m.def("poisson_nll(Tensor log_rate, Tensor crow, Tensor col, Tensor values) -> Tensor");
  m.def(
      "poisson_nll_backward(Tensor grad, Tensor log_rate, Tensor crow, Tensor col, Tensor values) "
      "-> Tensor");
  m.def(
      "gaussian_nll(Tensor mean, Tensor? logvar, Tensor crow, Tensor col, Tensor values) -> "
      "Tensor");
  m.def(
      "gaussian_nll_backward(Tensor grad, Tensor mean, Tensor? logvar, Tensor crow, Tensor col, "
      "Tensor values, bool wants_mean, bool wants_logvar) -> (Tensor, Tensor)");
}
