// From tensors to the launchers' panel, for the ops on given predictions.
#pragma once

#include <torch/csrc/stable/ops.h>

#include "../ops/nll.h"
#include "context.h"
#include "nll_panel.h"
#include "tensor_types.h"

namespace sparsevae::cuda {

// The whole matrix as one panel; all of the tensors are contiguous and outlive it.
inline NllPanel whole_panel(const char* op, const Tensor& x, const Tensor& crow, const Tensor& col,
                            const Tensor& values) {
  NllPanel p;
  p.type = float_type(op, x);
  p.wide_index = crow.scalar_type() == ScalarType::Long;
  p.rows = x.size(0);
  p.cols = p.all_cols = p.ld = x.size(1);
  p.x = x.const_data_ptr();
  p.crow = crow.const_data_ptr();
  p.col = col.const_data_ptr();
  p.values = values.const_data_ptr();
  p.nnz = col.numel();
  return p;
}

// A fresh gradient like a prediction, or of shape (0,) where it is not wanted.
inline Tensor new_nll_gradient(const Tensor& like, bool wanted) {
  return wanted ? torch::stable::new_empty(like, {like.size(0), like.size(1)})
                : torch::stable::new_empty(like, {int64_t{0}});
}

}  // namespace sparsevae::cuda
