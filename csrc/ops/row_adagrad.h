// Device-free checks of row_adagrad.
#pragma once

#include "../common/checks.h"
#include "row_adam.h"

namespace sparsevae {

inline void check_row_adagrad(const Tensor& param, const Tensor& sum, const Tensor& rows,
                              const Tensor& grad) {
  const char* op = "row_adagrad";
  check_dim(op, "param", param, 2);
  SPARSEVAE_CHECK(param.is_contiguous(), op, "(): expected param to be contiguous");
  check_same_device(op, "param", param, "sum", sum);
  SPARSEVAE_CHECK(sum.dim() == 1 && sum.size(0) == param.size(0) && sum.is_contiguous(), op,
                  "(): expected sum to be contiguous, of shape (", param.size(0), ",), but got ",
                  shape_text(sum));
  const ScalarType wanted = accumulation_type(param);
  SPARSEVAE_CHECK(sum.scalar_type() == wanted, op, "(): expected sum of dtype ",
                  torch::headeronly::toString(wanted), ", but got ",
                  torch::headeronly::toString(sum.scalar_type()));
  check_row_adam_rows(op, param, rows);
  check_row_adam_grad(op, param, rows, grad);
}

}  // namespace sparsevae
