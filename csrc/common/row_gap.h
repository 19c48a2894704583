// The table of steps that sparsevae_ext/ops/row_adam.py keeps (class History, where the formulas
// are explained), and what a row owes according to it. Nothing inline: the files of csrc/cpu/isa
// include this.
#pragma once

#include <cstdint>

namespace sparsevae {

// The columns of the table, float64; row i is about step base + i.
enum RowAdamColumn {
  kStepSize,
  kRootScale,
  kDecay,
  kLogDecay,
  kSum0,
  kSum1,
  kSum2,
  kPower1,
  kPower2,
  kRowAdamColumns
};

// Up to so many missed steps are taken one by one; more of them in closed form, as far as it holds.
constexpr int64_t kRowAdamShortGap = 3;
// The closed form holds where the spread of e is less than this share of sqrt(v) + E, squared.
constexpr double kRowAdamSpread = 1e-4;

// The missed steps of a row, in the type they are computed in.
template <typename acc_t>
struct RowGap {
  int64_t first;   // row of the table of the first step that still moves the row
  int64_t count;   // of the steps that do
  acc_t decay;     // of all missed steps
  acc_t late;      // the part of it that comes after the `count` steps
  acc_t sum;       // Q
  acc_t mean;      // E
  acc_t variance;  // V
  acc_t power1;    // what is left of m
  acc_t power2;    // what is left of v
};

}  // namespace sparsevae
