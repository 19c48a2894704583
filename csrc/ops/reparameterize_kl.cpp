// reparameterize_kl: a draw from a diagonal Gaussian and its divergence from the prior.
//
// mu, logvar (B, Z) of one floating dtype T; A is T's accumulation type (float for 16 bits).
// With v = min(logvar, logvar_max):
//   z (B, Z), or (K, B, Z) with n_samples = K, of dtype T: z = mu + eps exp(v / 2)
//   kl (B,) of dtype A: sum over j of d_j, or of free_bits where counted[j] is false, with
//     d_j = ((mu - prior_mean)^2 exp(-prior_logvar) + expm1(w) - w) / 2, w = v - prior_logvar
// prior_mean, prior_logvar (Z,) of dtype A, zeros when absent; counted (Z,) Bool.
// Exactly one of eps, of z's shape and dtype A, and seed, int64 (2,), is given. From a seed,
//   eps[k, b, j] = normal number e of (seed[0], seed[1]) in common/philox.h,
//   e = (k * draw_rows + b mod draw_rows) * Z + j,
// so that rows repeat their draws after draw_rows rows (a batch of batches gets equal draws).
//
// The backward gives the gradients of mu and logvar, in T, from those of z (T) and kl (A), either
// of which may be absent. It makes eps again. A gradient that is not needed has shape (0,).
//
// reparameterize_kl_counted gives the (Z,) Bool mask of the dimensions whose mean of d_j over the
// batch is not <= free_bits (a nan counts).
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY_FRAGMENT(sparsevae_ext, m) {
  m.def(
      "reparameterize_kl(Tensor mu, Tensor logvar, Tensor? seed, Tensor? eps, Tensor? prior_mean, "
      "Tensor? prior_logvar, Tensor? counted, float free_bits, float? logvar_max, SymInt? "
      "n_samples, SymInt draw_rows) -> (Tensor z, Tensor kl)");
  m.def(
      "reparameterize_kl_backward(Tensor? grad_z, Tensor? grad_kl, Tensor mu, Tensor logvar, "
      "Tensor? seed, Tensor? eps, Tensor? prior_mean, Tensor? prior_logvar, Tensor? counted, "
      "float? "
      "logvar_max, SymInt? n_samples, SymInt draw_rows, bool need_mu, bool need_logvar) -> (Tensor "
      "grad_mu, Tensor grad_logvar)");
  m.def(
      "reparameterize_kl_counted(Tensor mu, Tensor logvar, Tensor? prior_mean, Tensor? "
      "prior_logvar, float free_bits, float? logvar_max) -> Tensor");
}
