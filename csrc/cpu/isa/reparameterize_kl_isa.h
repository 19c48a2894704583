// What csrc/cpu/reparameterize_kl_kernel.cpp asks of each instruction set. Free of torch; see
// reparameterize_kl_loops.h.
#pragma once

#include <cstdint>

#include "table.h"

namespace sparsevae {

// The ops' arguments (csrc/ops/reparameterize_kl.cpp) as pointers to contiguous memory. What is not
// given is null.
template <typename scalar_t>
struct ReparameterizeKl {
  using acc_t = typename AccumulationOf<scalar_t>::type;
  const scalar_t* mu;            // (rows, width)
  const scalar_t* logvar;        // (rows, width)
  const acc_t* eps;              // (samples, rows, width), or null: draw
  const acc_t* prior_mean;       // (width,)
  const acc_t* prior_logvar;     // (width,)
  const acc_t* prior_precision;  // (width,) exp(-prior_logvar)
  const acc_t* constant;         // (width,) what a dimension counts as in kl; negative: its own
  acc_t logvar_max;              // inf without a bound
  uint64_t key, stream;          // the seed
  int64_t rows, width, samples, draw_rows;
  // forward
  scalar_t* z;  // (samples, rows, width)
  acc_t* kl;    // (rows,)
  // backward
  const scalar_t* grad_z;  // (samples, rows, width)
  const acc_t* grad_kl;    // (rows,)
  scalar_t* grad_mu;       // (rows, width)
  scalar_t* grad_logvar;   // (rows, width)
};

template <typename scalar_t>
struct ReparameterizeKlLoops {
  using Args = ReparameterizeKl<scalar_t>;
  void (*forward)(const Args&, int64_t first_row, int64_t last_row);
  void (*backward)(const Args&, int64_t first_row, int64_t last_row);
  // out[j] = the sum over the rows of dimension j's divergence
  void (*column_sums)(const Args&, int64_t first_row, int64_t last_row, typename Args::acc_t* out);
};

struct ReparameterizeKlTable : PerType<ReparameterizeKlLoops> {
  static const ReparameterizeKlTable& isa_generic();
  static const ReparameterizeKlTable& isa_avx2();
  static const ReparameterizeKlTable& isa_avx512();
};

}  // namespace sparsevae
