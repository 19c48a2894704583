// The inner loop of row_adagrad, as one table of functions per instruction set. Free of torch.
#pragma once

#include <cstdint>

#include "table.h"

namespace sparsevae {

template <typename scalar_t>
struct RowAdagradStep {
  using acc_t = typename AccumulationOf<scalar_t>::type;
  scalar_t* param;  // (N, width)
  acc_t* sum;       // (N,)
  const int64_t* row;
  const scalar_t* grad;  // (U, width)
  int64_t width;         // not 0
  acc_t lr, eps;
};

template <typename scalar_t>
struct RowAdagradLoops {
  // Row row[u] of the table with row u of grad, for u in [first, last).
  void (*step)(const RowAdagradStep<scalar_t>&, int64_t first, int64_t last);
};

struct RowAdagradTable : PerType<RowAdagradLoops> {
  static const RowAdagradTable& isa_generic();
  static const RowAdagradTable& isa_avx2();
  static const RowAdagradTable& isa_avx512();
};

}  // namespace sparsevae
