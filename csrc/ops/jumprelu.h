// Device-free checks of the jumprelu ops.
#pragma once

#include <cmath>

#include "../common/checks.h"

namespace sparsevae {

inline void check_jumprelu(const char* op, const Tensor& h, const Tensor& threshold,
                           double bandwidth) {
  check_dim(op, "h", h, 2);
  check_dim(op, "threshold", threshold, 1);
  check_same_device(op, "h", h, "threshold", threshold);
  SPARSEVAE_CHECK(threshold.size(0) == h.size(1), op, "(): expected threshold of shape (",
                  h.size(1), ",), but got ", shape_text(threshold));
  const ScalarType wide = accumulation_type(h);
  SPARSEVAE_CHECK(threshold.scalar_type() == wide, op, "(): expected threshold to be ",
                  torch::headeronly::toString(wide), " beside h of ",
                  torch::headeronly::toString(h.scalar_type()), ", but got ",
                  torch::headeronly::toString(threshold.scalar_type()));
  if (!(bandwidth > 0) || std::isinf(bandwidth))
    throw std::invalid_argument(
        concat(op, "(): expected a positive, finite bandwidth, but got ", bandwidth));
}

inline void check_jumprelu_backward(const std::optional<Tensor>& grad_out,
                                    const std::optional<Tensor>& grad_count, const Tensor& h,
                                    const Tensor& threshold, double bandwidth) {
  const char* op = "jumprelu_backward";
  check_jumprelu(op, h, threshold, bandwidth);
  if (grad_out) {
    check_same_device(op, "h", h, "grad_out", *grad_out);
    check_same_dtype(op, "h", h, "grad_out", *grad_out);
    SPARSEVAE_CHECK(
        grad_out->dim() == 2 && grad_out->size(0) == h.size(0) && grad_out->size(1) == h.size(1),
        op, "(): expected grad_out of shape ", shape_text(h), ", but got ", shape_text(*grad_out));
  }
  if (grad_count) {
    check_same_device(op, "h", h, "grad_count", *grad_count);
    check_same_dtype(op, "threshold", threshold, "grad_count", *grad_count);
    SPARSEVAE_CHECK(grad_count->dim() == 1 && grad_count->size(0) == h.size(0), op,
                    "(): expected grad_count of shape (", h.size(0), ",), but got ",
                    shape_text(*grad_count));
  }
}

}  // namespace sparsevae
