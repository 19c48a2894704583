// The inner loops of the likelihoods for this machine's instruction set.
#pragma once

#include <cmath>

#include "isa.h"
#include "isa/nll_isa.h"

namespace sparsevae {

inline const NllTables& nll_tables() { return isa_table<NllTables>(); }

// What a running maximum and sum (MultinomialNllLoops::lse) stand for. A maximum of inf was not
// subtracted, so that inf stays inf; without columns it is -inf.
inline double log_sum_exp(double max, double sum) {
  return (std::isinf(max) ? 0.0 : max) + std::log(sum);
}

}  // namespace sparsevae
