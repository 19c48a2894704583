// linear_nll: a likelihood of sparse rows together with the linear layer that makes its
// predictions, and all their gradients, in one op. The (B, N) predictions are never stored.
//
// likelihood is "multinomial", "bernoulli", "poisson", "gaussian", "negative_binomial" or
// "zero_inflated_negative_binomial". With l = h weight^T + bias, where h is (B, H), weight (N, H),
// bias (N,) or absent, and the target (B, N) in CSR form with ascending columns in every row:
//   nll (B,): row i's negative log-likelihood, of l_i as logits (multinomial, Bernoulli), log-rate,
//     mean or log-mean, with the meaning of the op on given predictions of the same name.
// zero_weight (N, H), zero_bias (N,): layer of the logit of an inflated zero; only there.
// log_scale: log-dispersion, (N,) or (B, N), of the negative binomials; log-variance, (N,), of the
//   Gaussian, whose variance is 1 without it.
// library (B,): the mean of a negative binomial is library * softmax(l) instead of exp(l).
//
// The gradients are those of sum_i row_weight[i] * nll[i]. Each is computed only where its need_
// flag is set (which asks for row_weight), and has shape (0,) otherwise.
//
// A is double for double and float for every other dtype. h, the weights and the biases have one
// floating dtype, or any where gemm_dtype is given; the products are made in gemm_dtype or that
// dtype, the rest is computed in A. values, log_scale, library and row_weight are of dtype A, and
// so is nll. A gradient has the dtype of what it belongs to.
//
// max_elements: how many predictions may be stored at a time (of both kinds together where there
// are two), beside those that wait in the memory of a gradient (linear_nll_driver.h); absent:
// B * N / 8. At least a narrow panel is.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY_FRAGMENT(sparsevae_ext, m) {
  m.def(
      "linear_nll(str likelihood, Tensor h, Tensor weight, Tensor? bias, Tensor? zero_weight, "
      "Tensor? zero_bias, Tensor? log_scale, Tensor? library, Tensor crow, Tensor col, Tensor "
      "values, Tensor? row_weight, bool need_h, bool need_weight, bool need_bias, bool "
      "need_zero_weight, bool need_zero_bias, bool need_log_scale, bool need_library, ScalarType? "
      "gemm_dtype, SymInt? max_elements) -> (Tensor nll, Tensor grad_h, Tensor grad_weight, Tensor "
      "grad_bias, Tensor grad_zero_weight, Tensor grad_zero_bias, Tensor grad_log_scale, Tensor "
      "grad_library)");
}
