// What a row owes, from the table of steps. Free of torch, for the CPU and for CUDA.
#pragma once

#include <cmath>

#include "row_gap.h"

#if defined(__CUDACC__)
#define SPARSEVAE_HOST_DEVICE __host__ __device__
#else
#define SPARSEVAE_HOST_DEVICE
#endif

namespace sparsevae {

// `start` is the row of the table that belongs to the weight's last step, `newest` that of the
// newest step; start <= newest. A fresh row has no moments.
template <typename acc_t>
SPARSEVAE_HOST_DEVICE inline RowGap<acc_t> row_gap(const double* table, int64_t start,
                                                   int64_t newest, bool fresh, int64_t window,
                                                   double eps) {
  const double* from = table + start * kRowAdamColumns;
  const double* to = table + newest * kRowAdamColumns;
  const int64_t gap = newest - start, count = fresh ? 0 : gap < window ? gap : window;
  const double log_decay = to[kLogDecay] - from[kLogDecay];
  const double log_late = to[kLogDecay] - table[(start + count) * kRowAdamColumns + kLogDecay];
  const double late = log_late == 0 ? 1.0 : std::exp(log_late);
  const double sum = from[kSum0];
  double mean = eps, variance = 0;
  if (sum > 0) {
    mean = from[kSum1] / sum;
    variance = from[kSum2] / sum - mean * mean;
  }
  return {start + 1,
          count,
          static_cast<acc_t>(log_decay == 0 ? 1.0 : std::exp(log_decay)),
          static_cast<acc_t>(late),
          static_cast<acc_t>(sum * late),
          static_cast<acc_t>(mean),
          static_cast<acc_t>(variance > 0 ? variance : 0)};
}

template <typename acc_t>
SPARSEVAE_HOST_DEVICE inline RowDecay<acc_t> row_decay(const double* table, int64_t steps) {
  const double* row = table + steps * kRowAdamColumns;
  return {static_cast<acc_t>(row[kPower1]), static_cast<acc_t>(row[kPower2])};
}

// beta^steps without a table; as there, what is too small to show is zero.
template <typename acc_t>
SPARSEVAE_HOST_DEVICE inline acc_t decayed(acc_t log2_beta, int64_t steps) {
  if (steps <= 0) return 1;
  const acc_t exponent = log2_beta * static_cast<acc_t>(steps);
  return exponent < acc_t(-80) ? acc_t(0) : std::exp2(exponent);
}

}  // namespace sparsevae
