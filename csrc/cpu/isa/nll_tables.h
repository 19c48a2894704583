// The tables of nll_isa.h; included once per instruction set with SPARSEVAE_ISA defined.
#pragma once

#include "cell_nll_loops.h"
#include "multinomial_nll_loops.h"

namespace sparsevae::SPARSEVAE_ISA {

// Of a likelihood L that is a sum over cells.
template <typename L>
consteval NllTable cell_nll_table() {
  return per_type<NllLoops>([]<typename T>() { return cell_nll_loops<L, T>(); });
}

constexpr NllTables kTable{
    cell_nll_table<BernoulliNll>(), cell_nll_table<PoissonNll>(),
    per_type<NllLoops>([]<typename T>() { return gaussian_nll_loops<T>(); }),
    per_type<MultinomialNllLoops>([]<typename T>() { return multinomial_nll_loops<T>(); })};

}  // namespace sparsevae::SPARSEVAE_ISA

const sparsevae::NllTables& sparsevae::NllTables::SPARSEVAE_ISA() { return SPARSEVAE_ISA::kTable; }
