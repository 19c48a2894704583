// The inner loops of the negative binomials for this machine's instruction set.
#pragma once

#include "isa.h"
#include "isa/negative_binomial_nll_isa.h"

namespace sparsevae {

inline const NegativeBinomialTables& negative_binomial_tables() {
#if defined(__x86_64__)
  switch (cpu_isa()) {
    case Isa::avx512:
      return negative_binomial_tables_avx512();
    case Isa::avx2:
      return negative_binomial_tables_avx2();
    default:
      break;
  }
#endif
  return negative_binomial_tables_generic();
}

inline void exp_of(const float* x, int64_t n, float* out) {
  negative_binomial_tables().exp_f32(x, n, out);
}
inline void exp_of(const double* x, int64_t n, double* out) {
  negative_binomial_tables().exp_f64(x, n, out);
}

}  // namespace sparsevae
