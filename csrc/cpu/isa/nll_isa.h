// The inner loops of the likelihoods, as one table of functions per likelihood and instruction set.
// Free of torch. What they work on is in nll_piece.h; nll_tables() in ../nll_loops_of.h
// gives those of this machine.
#pragma once

#include "nll_piece.h"
#include "table.h"

namespace sparsevae {

// A likelihood that is a sum over cells: the results of a row's pieces add up to the row's.
template <typename scalar_t>
struct NllLoops {
  // The piece's negative log-likelihood: the dense part and the correction at the entries.
  double (*value)(const NllPiece<scalar_t>&);
  // Writes the gradients that are not null, multiplied by `weight`; they may lie on x and x2.
  void (*gradient)(const NllPiece<scalar_t>&);
  // Both in one pass.
  double (*value_and_gradient)(const NllPiece<scalar_t>&);
};

using NllTable = PerType<NllLoops>;

// The multinomial needs the log-sum-exp of the whole row before anything else.
template <typename scalar_t>
struct MultinomialNllLoops {
  using acc_t = typename AccumulationOf<scalar_t>::type;

  // Merges the piece into a running maximum and sum: before the first piece *max = -inf and *sum =
  // 0; afterwards sum of exp(x - *max). log_sum_exp() in ../nll_loops_of.h makes one number of
  // them.
  void (*lse)(const NllPiece<scalar_t>&, acc_t* max, double* sum);
  // The sum of value * (lse - x) over the entries.
  double (*value)(const NllPiece<scalar_t>&, acc_t lse);
  // grad = weight * (total * exp(x - lse) - value at the entries); total is the sum of the row's
  // values. For a row without entries pass lse = inf: its gradient is zero whatever x is.
  void (*gradient)(const NllPiece<scalar_t>&, acc_t lse, acc_t total);
};

using MultinomialNllTable = PerType<MultinomialNllLoops>;

// Everything on given predictions that one instruction set has.
struct NllTables {
  NllTable bernoulli;  // x: logits
  NllTable poisson;    // x: log-rates
  NllTable gaussian;   // x: means; x2: log-variances, or null for unit variance
  MultinomialNllTable multinomial;

  static const NllTables& isa_generic();
  static const NllTables& isa_avx2();
  static const NllTables& isa_avx512();
};

}  // namespace sparsevae
