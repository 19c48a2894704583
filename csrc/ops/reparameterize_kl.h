// Device-free checks of the reparameterize_kl ops: everything that is known without reading tensor
// memory.
#pragma once

#include "../common/checks.h"

namespace sparsevae {

inline void check_dtype(const char* op, const char* name, const Tensor& t, ScalarType expected) {
  SPARSEVAE_CHECK(t.scalar_type() == expected, op, "(): expected ", name, " of dtype ",
                  torch::headeronly::toString(expected), ", but got ",
                  torch::headeronly::toString(t.scalar_type()));
}

inline void check_posterior(const char* op, const Tensor& mu, const Tensor& logvar,
                            const std::optional<Tensor>& prior_mean,
                            const std::optional<Tensor>& prior_logvar) {
  check_dim(op, "mu", mu, 2);
  check_dim(op, "logvar", logvar, 2);
  SPARSEVAE_CHECK(logvar.size(0) == mu.size(0) && logvar.size(1) == mu.size(1), op,
                  "(): expected logvar of shape ", shape_text(mu), ", but got ",
                  shape_text(logvar));
  check_same_dtype(op, "mu", mu, "logvar", logvar);
  check_same_device(op, "mu", mu, "logvar", logvar);
  const auto check_prior = [&](const char* name, const std::optional<Tensor>& prior) {
    if (!prior) return;
    SPARSEVAE_CHECK(prior->dim() == 1 && prior->size(0) == mu.size(1), op, "(): expected ", name,
                    " of shape (", mu.size(1), ",), but got ", shape_text(*prior));
    check_dtype(op, name, *prior, accumulation_type(mu));
    check_same_device(op, "mu", mu, name, *prior);
  };
  check_prior("prior_mean", prior_mean);
  check_prior("prior_logvar", prior_logvar);
}

inline void check_counted(const char* op, const Tensor& mu, const std::optional<Tensor>& counted) {
  if (!counted) return;
  SPARSEVAE_CHECK(counted->dim() == 1 && counted->size(0) == mu.size(1), op,
                  "(): expected counted of shape (", mu.size(1), ",), but got ",
                  shape_text(*counted));
  check_dtype(op, "counted", *counted, ScalarType::Bool);
  check_same_device(op, "mu", mu, "counted", *counted);
}

// z, its gradient and eps are (B, Z), or (K, B, Z) when there is a number of samples.
inline void check_draws(const char* op, const char* name, const Tensor& t, const Tensor& mu,
                        const std::optional<int64_t>& n_samples) {
  const int64_t lead = n_samples ? 1 : 0;
  SPARSEVAE_CHECK(t.dim() == 2 + lead && t.size(lead) == mu.size(0) &&
                      t.size(lead + 1) == mu.size(1) && (!n_samples || t.size(0) == *n_samples),
                  op, "(): expected ", name, " of shape (",
                  n_samples ? concat(*n_samples, ", ") : std::string(), mu.size(0), ", ",
                  mu.size(1), "), but got ", shape_text(t));
  check_same_device(op, "mu", mu, name, t);
}

inline void check_noise(const char* op, const Tensor& mu, const std::optional<Tensor>& seed,
                        const std::optional<Tensor>& eps, const std::optional<int64_t>& n_samples,
                        int64_t draw_rows) {
  SPARSEVAE_CHECK(!n_samples || *n_samples >= 1, op, "(): expected n_samples >= 1, but got ",
                  n_samples ? *n_samples : 0);
  SPARSEVAE_CHECK(seed.has_value() != eps.has_value(), op, "(): expected seed or eps, but got ",
                  seed ? "both" : "neither");
  SPARSEVAE_CHECK(draw_rows >= 1 || mu.size(0) == 0, op, "(): expected draw_rows >= 1, but got ",
                  draw_rows);
  if (seed) {
    SPARSEVAE_CHECK(seed->dim() == 1 && seed->size(0) == 2, op,
                    "(): expected seed of shape (2,), but got ", shape_text(*seed));
    check_dtype(op, "seed", *seed, ScalarType::Long);
    check_same_device(op, "mu", mu, "seed", *seed);
  }
  if (eps) {
    check_draws(op, "eps", *eps, mu, n_samples);
    check_dtype(op, "eps", *eps, accumulation_type(mu));
  }
}

inline void check_gradients(const char* op, const Tensor& mu, const std::optional<Tensor>& grad_z,
                            const std::optional<Tensor>& grad_kl,
                            const std::optional<int64_t>& n_samples) {
  if (grad_z) {
    check_draws(op, "grad_z", *grad_z, mu, n_samples);
    check_same_dtype(op, "mu", mu, "grad_z", *grad_z);
  }
  if (grad_kl) {
    SPARSEVAE_CHECK(grad_kl->dim() == 1 && grad_kl->size(0) == mu.size(0), op,
                    "(): expected grad_kl of shape (", mu.size(0), ",), but got ",
                    shape_text(*grad_kl));
    check_dtype(op, "grad_kl", *grad_kl, accumulation_type(mu));
    check_same_device(op, "mu", mu, "grad_kl", *grad_kl);
  }
}

}  // namespace sparsevae
