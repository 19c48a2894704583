// What csrc/cpu/linear_nll_kernel.cpp asks of each instruction set beside the likelihoods' own
// loops (nll_isa.h). Free of torch; see linear_nll_loops.h.
#pragma once

#include <cstdint>

#include "table.h"

namespace sparsevae {

// scalar_t is what the matrix products are made in.
template <typename scalar_t>
struct LinearNllLoops {
  using acc_t = typename AccumulationOf<scalar_t>::type;
  // out = x + bias; without a bias where that is null. `out` may be x.
  void (*load)(const scalar_t* x, const acc_t* bias, int64_t n, acc_t* out);
  // out = x, rounded to nearest
  void (*store)(const acc_t* x, int64_t n, scalar_t* out);
  // total += x
  void (*add)(const scalar_t* x, int64_t n, acc_t* total);
};

struct LinearNllTable : PerType<LinearNllLoops> {
  static const LinearNllTable& isa_generic();
  static const LinearNllTable& isa_avx2();
  static const LinearNllTable& isa_avx512();
};

}  // namespace sparsevae
