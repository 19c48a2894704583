// The inner loops of the likelihoods for this machine's instruction set.
#pragma once

#include <cmath>
#include <type_traits>

#include "isa.h"
#include "isa/nll_isa.h"

namespace sparsevae {

inline const NllTables& nll_tables() {
#if defined(__x86_64__)
  switch (cpu_isa()) {
    case Isa::avx512:
      return nll_tables_avx512();
    case Isa::avx2:
      return nll_tables_avx2();
    default:
      break;
  }
#endif
  return nll_tables_generic();
}

// The entry of a table for an element type: loops_of<float>(nll_tables().bernoulli).
template <typename scalar_t, typename table_t>
const auto& loops_of(const table_t& table) {
  if constexpr (std::is_same_v<scalar_t, float>)
    return table.f32;
  else if constexpr (std::is_same_v<scalar_t, double>)
    return table.f64;
  else if constexpr (std::is_same_v<scalar_t, bfloat16_bits>)
    return table.bf16;
  else
    return table.f16;
}

// What a running maximum and sum (MultinomialNllLoops::lse) stand for. A maximum of inf was not
// subtracted, so that inf stays inf; without columns it is -inf.
inline double log_sum_exp(double max, double sum) {
  return (std::isinf(max) ? 0.0 : max) + std::log(sum);
}

}  // namespace sparsevae
