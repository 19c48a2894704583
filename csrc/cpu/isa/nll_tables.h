// The tables of nll_isa.h; included once per instruction set with SPARSEVAE_ISA defined.
#pragma once

#include "cell_nll_loops.h"
#include "multinomial_nll_loops.h"

namespace sparsevae::SPARSEVAE_ISA {

template <typename L>
constexpr NllTable cell_nll_table() {
  return {cell_nll_loops<L, float>(), cell_nll_loops<L, double>(),
          cell_nll_loops<L, bfloat16_bits>(), cell_nll_loops<L, float16_bits>()};
}

inline constexpr NllTables make_nll_tables() {
  return {cell_nll_table<BernoulliNll>(),
          cell_nll_table<PoissonNll>(),
          {gaussian_nll_loops<float>(), gaussian_nll_loops<double>(),
           gaussian_nll_loops<bfloat16_bits>(), gaussian_nll_loops<float16_bits>()},
          {multinomial_nll_loops<float>(), multinomial_nll_loops<double>(),
           multinomial_nll_loops<bfloat16_bits>(), multinomial_nll_loops<float16_bits>()}};
}

}  // namespace sparsevae::SPARSEVAE_ISA
