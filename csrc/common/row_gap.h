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
// The closed form holds where the spread of e is less than this share of sqrt(v) + E, squared. What
// it leaves out is of the order of the spread's 1.5th power: less than the type's rounding of a
// step.
template <typename acc_t>
constexpr double kRowAdamSpread = sizeof(acc_t) == 8 ? 1e-10 : 1e-4;

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
};

// A row's last steps: of the weight, which readers want up to date, and of its moments, which wait
// for the row's next gradient, or for all rows to be brought up to date.
struct RowSteps {
  int32_t weight;
  int32_t moments;  // 0: they are zero, the row has never had a gradient
};

// What is left of the moments (m, v) after steps without a gradient.
template <typename acc_t>
struct RowDecay {
  acc_t m, v;
};

}  // namespace sparsevae
