// Device-free checks of the kl_sparsity ops.
#pragma once

#include "../common/checks.h"

namespace sparsevae {

inline void check_rho(const char* op, double rho) {
  if (!(rho > 0 && rho < 1)) [[unlikely]]
    throw std::invalid_argument(concat(op, "(): expected rho in (0, 1), but got ", rho));
}

inline void check_kl_sparsity(const char* op, const Tensor& h, double rho) {
  check_dim(op, "h", h, 2);
  check_rho(op, rho);
}

inline void check_kl_sparsity_backward(const char* op, const Tensor& grad, const Tensor& mean,
                                       double rho, int64_t n_rows) {
  check_dim(op, "grad", grad, 0);
  check_dim(op, "mean", mean, 1);
  check_same_device(op, "mean", mean, "grad", grad);
  check_same_dtype(op, "mean", mean, "grad", grad);
  check_rho(op, rho);
  SPARSEVAE_CHECK(n_rows >= 0, op, "(): expected n_rows >= 0, but got ", n_rows);
}

}  // namespace sparsevae
