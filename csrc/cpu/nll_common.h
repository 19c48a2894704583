// What the CPU kernels of the likelihoods share beside the target: dispatch and fresh gradients.
#pragma once

#include "../ops/nll.h"
#include "contiguous.h"
#include "dispatch.h"
#include "nll_loops_of.h"
#include "nll_target.h"
#include "output.h"

namespace sparsevae {

// Gradients from this size on are written past the caches, which could not hold them.
constexpr int64_t kNllPastCaches = int64_t{8} << 20;

inline bool past_caches(const Tensor& gradient) {
  return gradient.numel() * static_cast<int64_t>(gradient.element_size()) >= kNllPastCaches;
}

// A fresh gradient like a prediction, or of shape (0,) where it is not wanted.
inline Tensor new_gradient(const Tensor& like, bool wanted) {
  if (!wanted) return torch::stable::new_empty(like, {int64_t{0}});
  return new_output(like, {like.size(0), like.size(1)});
}

// body(Type<scalar_t>, NllTarget) with the checked target of a prediction.
template <typename F>
void dispatch_nll(const char* op, const Tensor& prediction, const Tensor& crow_in,
                  const Tensor& col_in, const Tensor& values_in, const F& body) {
  const Tensor crow = as_contiguous(crow_in), col = as_contiguous(col_in),
               values = as_contiguous(values_in);
  dispatch(op, crow, prediction, [&](auto index_type, auto scalar_type) {
    using index_t = typename decltype(index_type)::type;
    using acc_t = wide_t<typename decltype(scalar_type)::type>;
    const NllTarget<index_t, acc_t> target(op, data<index_t>(crow), data<index_t>(col),
                                           data<acc_t>(values), prediction.size(0),
                                           prediction.size(1), col.numel());
    body(scalar_type, target);
  });
}

}  // namespace sparsevae
