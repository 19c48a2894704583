// The inner loops of the negative binomials for this machine's instruction set.
#pragma once

#include "isa.h"
#include "isa/negative_binomial_nll_isa.h"

namespace sparsevae {

inline const NegativeBinomialTables& negative_binomial_tables() {
  return isa_table<NegativeBinomialTables>();
}

inline void exp_of(const float* x, int64_t n, float* out) {
  negative_binomial_tables().exp_f32(x, n, out);
}
inline void exp_of(const double* x, int64_t n, double* out) {
  negative_binomial_tables().exp_f64(x, n, out);
}

}  // namespace sparsevae
