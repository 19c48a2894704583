// The inner loops of row_adam, as one table of functions per instruction set. Free of torch.
#pragma once

#include <cstdint>

#include "../../common/row_gap.h"
#include "table.h"

namespace sparsevae {

template <typename scalar_t>
struct RowAdamStep {
  using acc_t = typename AccumulationOf<scalar_t>::type;
  scalar_t* param;  // (N, width), as the moments
  scalar_t* exp_avg;
  scalar_t* exp_avg_sq;
  const scalar_t* grad;           // (U, width)
  const RowDecay<acc_t>* decays;  // (U,), or null: none
  int64_t width;
  acc_t new1;         // 1 - beta1
  acc_t beta2, new2;  // new2 = 1 - beta2
  acc_t eps, step_size, root_scale, decay;
  int64_t known;  // rows from the first on that may be asked for ahead of their turn
};

// The facts of one step, for the replay step by step.
template <typename acc_t>
struct RowAdamFacts {
  acc_t step_size, root_scale, decay;
};

template <typename scalar_t>
struct RowAdamCatchUp {
  using acc_t = typename AccumulationOf<scalar_t>::type;
  scalar_t* param;
  scalar_t* exp_avg;
  scalar_t* exp_avg_sq;
  const RowAdamFacts<acc_t>* facts;  // one for each row of the table
  int64_t width;
  acc_t beta1, beta2, eps;
  acc_t spread;  // kRowAdamSpread, or negative where the closed form may not be used
};

// What one row owes.
template <typename acc_t>
struct RowDebt {
  RowGap<acc_t> gap;
  RowDecay<acc_t> before;  // of the moments in memory, up to the weight's last step
  RowDecay<acc_t> now;     // up to the newest step; looked at where the moments are written
  bool moments;            // whether to write them
};

template <typename scalar_t>
struct RowAdamLoops {
  using acc_t = typename AccumulationOf<scalar_t>::type;
  // Row row[u] of the table with row u of grad and decays, for u in [first, last).
  void (*step)(const RowAdamStep<scalar_t>&, const int64_t* row, int64_t first, int64_t last);
  // Row row[u] with debt[u], for u in [0, n).
  void (*catch_up)(const RowAdamCatchUp<scalar_t>&, const int64_t* row, const RowDebt<acc_t>* debt,
                   int64_t n);
};

struct RowAdamTable : PerType<RowAdamLoops> {
  static const RowAdamTable& isa_generic();
  static const RowAdamTable& isa_avx2();
  static const RowAdamTable& isa_avx512();
};

}  // namespace sparsevae
