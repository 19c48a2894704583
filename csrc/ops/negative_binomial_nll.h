// Device-free checks of the negative binomial ops.
#pragma once

#include "../common/checks.h"

namespace sparsevae {

// `wide` is float64 for a float64 log_mu, else float32.
inline void check_wide(const char* op, const char* name, const Tensor& t, const Tensor& log_mu) {
  check_same_device(op, "log_mu", log_mu, name, t);
  const ScalarType wide = accumulation_type(log_mu);
  SPARSEVAE_CHECK(t.scalar_type() == wide, op, "(): expected ", name, " to be ",
                  torch::headeronly::toString(wide), " beside log_mu of ",
                  torch::headeronly::toString(log_mu.scalar_type()), ", but got ",
                  torch::headeronly::toString(t.scalar_type()));
}

inline void check_per_row(const char* op, const char* name, const Tensor& t, const Tensor& log_mu) {
  check_wide(op, name, t, log_mu);
  SPARSEVAE_CHECK(t.dim() == 1 && t.size(0) == log_mu.size(0), op, "(): expected ", name,
                  " of shape (", log_mu.size(0), ",), but got ", shape_text(t));
}

inline void check_negative_binomial(const char* op, const Tensor& log_mu, const Tensor& log_theta,
                                    const Tensor* zero_logits, const std::optional<Tensor>& library,
                                    const Tensor& crow, const Tensor& col, const Tensor& values) {
  check_dim(op, "log_mu", log_mu, 2);
  check_csr_layout(op, crow, col, values);
  check_same_device(op, "log_mu", log_mu, "values", values);
  SPARSEVAE_CHECK(crow.numel() - 1 == log_mu.size(0), op, "(): expected a target of ",
                  log_mu.size(0), " rows, but got ", crow.numel() - 1);
  check_wide(op, "values", values, log_mu);
  check_wide(op, "log_theta", log_theta, log_mu);
  const bool per_column = log_theta.dim() == 1 && log_theta.size(0) == log_mu.size(1);
  const bool per_cell = log_theta.dim() == 2 && log_theta.size(0) == log_mu.size(0) &&
                        log_theta.size(1) == log_mu.size(1);
  SPARSEVAE_CHECK(per_column || per_cell, op, "(): expected log_theta of shape (", log_mu.size(1),
                  ",) or ", shape_text(log_mu), ", but got ", shape_text(log_theta));
  if (zero_logits) {
    check_same_device(op, "log_mu", log_mu, "zero_logits", *zero_logits);
    check_same_dtype(op, "log_mu", log_mu, "zero_logits", *zero_logits);
    SPARSEVAE_CHECK(zero_logits->dim() == 2 && zero_logits->size(0) == log_mu.size(0) &&
                        zero_logits->size(1) == log_mu.size(1),
                    op, "(): expected zero_logits of shape ", shape_text(log_mu), ", but got ",
                    shape_text(*zero_logits));
  }
  if (library) check_per_row(op, "library", *library, log_mu);
}

inline void check_negative_binomial_backward(const char* op, const Tensor& grad,
                                             const Tensor& log_mu,
                                             const std::optional<Tensor>& library,
                                             const Tensor& logsumexp) {
  check_per_row(op, "grad", grad, log_mu);
  if (library) check_per_row(op, "logsumexp", logsumexp, log_mu);
}

}  // namespace sparsevae
