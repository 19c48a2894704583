// Device-free checks of the batch_topk ops.
#pragma once

#include "../common/checks.h"
#include "topk.h"

namespace sparsevae {

inline void check_batch_topk(const Tensor& h, int64_t k) { check_topk_k("batch_topk", h, k); }

inline void check_batch_topk_backward(const Tensor& grad, const Tensor& kept) {
  const char* op = "batch_topk_backward";
  check_dim(op, "grad", grad, 2);
  check_dim(op, "kept", kept, 1);
  check_same_device(op, "grad", grad, "kept", kept);
  SPARSEVAE_CHECK(kept.scalar_type() == ScalarType::Long, op,
                  "(): expected kept to be Long, but got ",
                  torch::headeronly::toString(kept.scalar_type()));
  SPARSEVAE_CHECK(kept.numel() <= grad.numel(), op, "(): expected at most ", grad.numel(),
                  " kept entries, but got ", kept.numel());
}

}  // namespace sparsevae
