// The inner loops of the (zero-inflated) negative binomial likelihood, as one table of functions
// per instruction set. Free of torch.
//
// Of a NllPiece they take: x, the log-means; x2, the logits of the zeros that are no counts
// (inflated only); log_theta and, if it is there, theta; shift; grad, grad2, grad_log_theta,
// wide_grad and grad_sum where not null. The places of the entries must be ascending and distinct:
// a cell's cost is not linear in its count.
#pragma once

#include "nll_isa.h"

namespace sparsevae {

// For a mean of library * softmax(x): x is shifted by log(library) - logsumexp(x).
template <typename scalar_t>
struct LibraryLoops {
  using acc_t = typename AccumulationOf<scalar_t>::type;

  double (*logsumexp)(const scalar_t* x, int64_t n);
  // grad = from - total * exp(x - logsumexp), where total is the row's sum of `from`, the gradients
  // of the shifted x.
  void (*gradient)(const scalar_t* x, const acc_t* from, int64_t n, acc_t logsumexp, acc_t total,
                   scalar_t* grad);
};

using LibraryTable = PerType<LibraryLoops>;

struct NegativeBinomialTables {
  NllTable plain;
  NllTable inflated;
  LibraryTable library;
  void (*exp_f32)(const float* x, int64_t n, float* out);
  void (*exp_f64)(const double* x, int64_t n, double* out);

  static const NegativeBinomialTables& isa_generic();
  static const NegativeBinomialTables& isa_avx2();
  static const NegativeBinomialTables& isa_avx512();
};

}  // namespace sparsevae
