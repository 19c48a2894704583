// Device-free checks of the likelihoods on given predictions.
#pragma once

#include <optional>

#include "../common/checks.h"

namespace sparsevae {

// A tensor (rows,) or (nnz,) of what the predictions are computed in.
inline void check_accumulated(const char* op, const char* name, const Tensor& t, int64_t size,
                              const char* prediction_name, const Tensor& prediction) {
  check_same_device(op, prediction_name, prediction, name, t);
  SPARSEVAE_CHECK(t.scalar_type() == accumulation_type(prediction), op, "(): expected ", name,
                  " to be ", torch::headeronly::toString(accumulation_type(prediction)), " beside ",
                  prediction_name, " of ", torch::headeronly::toString(prediction.scalar_type()),
                  ", but got ", torch::headeronly::toString(t.scalar_type()));
  SPARSEVAE_CHECK(t.dim() == 1 && t.size(0) == size, op, "(): expected ", name, " of shape (", size,
                  ",), but got ", shape_text(t));
}

inline void check_nll(const char* op, const char* name, const Tensor& prediction,
                      const Tensor& crow, const Tensor& col, const Tensor& values) {
  check_dim(op, name, prediction, 2);
  check_csr_layout(op, crow, col, values);
  check_same_device(op, name, prediction, "crow_indices", crow);
  SPARSEVAE_CHECK(crow.numel() == prediction.size(0) + 1, op, "(): expected a target of ",
                  prediction.size(0), " rows, but got crow_indices of length ", crow.numel());
  check_accumulated(op, "values", values, col.numel(), name, prediction);
}

inline void check_row_gradient(const char* op, const Tensor& grad, const char* name,
                               const Tensor& prediction) {
  check_accumulated(op, "grad", grad, prediction.size(0), name, prediction);
}

// (N,) or (B, N), of the dtype of the mean.
inline void check_logvar(const char* op, const Tensor& mean, const std::optional<Tensor>& logvar) {
  if (!logvar) return;
  check_same_device(op, "mean", mean, "logvar", *logvar);
  check_same_dtype(op, "mean", mean, "logvar", *logvar);
  const bool shared = logvar->dim() == 1 && logvar->size(0) == mean.size(1);
  const bool own =
      logvar->dim() == 2 && logvar->size(0) == mean.size(0) && logvar->size(1) == mean.size(1);
  SPARSEVAE_CHECK(shared || own, op, "(): expected logvar of shape ", shape_text(mean), " or (",
                  mean.size(1), ",), but got ", shape_text(*logvar));
}

}  // namespace sparsevae
