// What the kernels of the likelihoods work on: all rows of a panel of columns of the predictions,
// with the target's entries in it. Free of torch: raw device pointers, 64-bit sizes.
//
// The panel may be the whole matrix (the ops on given predictions) or a part (the ops with the
// decoder's last layer inside). In a part, the entries of a row are found by binary search, so its
// columns must be ascending; over the whole matrix they may come in any order.
#pragma once

#include <cstdint>

#include "float_type.h"

namespace sparsevae::cuda {

// "acc" below is double where `type` is kDouble and float otherwise.
struct NllPanel {
  FloatType type;   // of x, x2, grad, grad2
  bool wide_index;  // crow and col are int64, else int32
  int64_t rows = 0;
  int64_t cols = 0;       // columns of the panel
  int64_t first_col = 0;  // of the matrix
  int64_t all_cols = 0;   // columns of the matrix

  const void* x = nullptr;  // (rows, cols), row r at x + r * ld
  const void* x2 = nullptr;
  bool x2_is_shared = false;  // x2 is one row (cols,) that all rows share
  int64_t ld = 0;

  const void* log_theta = nullptr;  // acc; row r at log_theta + r * ld_theta (0: one for all rows)
  int64_t ld_theta = 0;

  const void* crow = nullptr;
  const void* col = nullptr;
  const void* values = nullptr;  // acc, (nnz,)
  int64_t nnz = 0;

  const void* shift = nullptr;   // acc (rows,), or null for 0
  const void* weight = nullptr;  // acc (rows,): what gradients are multiplied by

  void* nll = nullptr;    // acc (rows,): added to, so that panels accumulate; null where not wanted
  void* grad = nullptr;   // as x; may be x
  void* grad2 = nullptr;  // (rows, cols) like grad, also beside a shared x2; may be an x2 of rows
};

}  // namespace sparsevae::cuda
