// Device-free checks of the topk ops.
#pragma once

#include <limits>

#include "../common/checks.h"

namespace sparsevae {

// The kernels number the columns of a row in 32 bits.
constexpr int64_t kMaxTopKWidth = std::numeric_limits<int32_t>::max() - 1024;

inline void check_topk_k(const char* op, const Tensor& h, int64_t k) {
  check_dim(op, "h", h, 2);
  if (k < 1 || k > h.size(1))
    throw std::invalid_argument(
        concat(op, "(): expected 1 <= k <= ", h.size(1), " (the width of h), but got ", k));
}

inline void check_topk(const Tensor& h, int64_t k) {
  check_topk_k("topk", h, k);
  SPARSEVAE_CHECK(h.size(1) <= kMaxTopKWidth, "topk(): expected at most ", kMaxTopKWidth,
                  " columns, but got ", h.size(1));
}

inline void check_topk_backward(const Tensor& grad_values, const Tensor& indices, int64_t width) {
  const char* op = "topk_backward";
  check_dim(op, "grad_values", grad_values, 2);
  check_dim(op, "indices", indices, 2);
  check_same_device(op, "grad_values", grad_values, "indices", indices);
  SPARSEVAE_CHECK(indices.scalar_type() == ScalarType::Long, op,
                  "(): expected indices to be Long, but got ",
                  torch::headeronly::toString(indices.scalar_type()));
  SPARSEVAE_CHECK(grad_values.size(0) == indices.size(0) && grad_values.size(1) == indices.size(1),
                  op, "(): expected grad_values and indices to have the same shape, but got ",
                  shape_text(grad_values), " and ", shape_text(indices));
  SPARSEVAE_CHECK(width >= 0, op, "(): expected width >= 0, but got ", width);
}

}  // namespace sparsevae
