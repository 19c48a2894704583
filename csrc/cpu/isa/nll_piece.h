// What the inner loops of the likelihoods work on: one row of predictions, or the part of it in one
// panel of columns, with the target's entries in that part. Free of torch.
//
// The callers (the ops on given predictions, which pass whole rows, and the ops with the decoder's
// last layer inside, which pass panels) have checked, shifted and sorted the columns of the
// entries: the loops follow `at` without a look, and walk over it once, beside the columns.
#pragma once

#include <cstdint>

#include "../../common/half.h"

namespace sparsevae {

// Pieces are shorter than this, so that an entry's place fits in 32 bits.
constexpr int64_t kMaxPieceCols = int64_t{1} << 30;

template <typename scalar_t>
struct NllPiece {
  using acc_t = typename AccumulationOf<scalar_t>::type;

  int64_t cols = 0;
  const scalar_t* x = nullptr;   // logits, log-rate, mean or log-mean
  const scalar_t* x2 = nullptr;  // Gaussian: log-variance; zero-inflated: logit of a zero

  // Negative binomial: log-dispersion of every column, and its exponential (null: made on the way).
  const acc_t* log_theta = nullptr;
  const acc_t* theta = nullptr;

  // The entries: at[e] in [0, cols) is the place of value[e]. Ascending; equal ones may follow each
  // other.
  const int32_t* at = nullptr;
  const acc_t* value = nullptr;
  int64_t entries = 0;

  acc_t shift = 0;   // added to every x before use: 0, or log(library) - logsumexp(x)
  acc_t weight = 0;  // the row's gradient: gradients are multiplied by it

  // Gradients, written where not null; they may lie where x and x2 lie.
  scalar_t* grad = nullptr;
  scalar_t* grad2 = nullptr;
  // Of what the rows share (log_theta; the log-variance of a Gaussian, beside grad2 = null): added
  // to.
  acc_t* grad_log_theta = nullptr;
  // Negative binomial, for the second pass that a shift by logsumexp(x) needs: the gradient before
  // rounding, written beside or instead of grad, and its sum over the piece, added to.
  acc_t* wide_grad = nullptr;
  double* grad_sum = nullptr;

  // Gaussian: whether the value has log(2 pi) / 2 for every column.
  bool with_log_2pi = true;
  // Write grad and grad2 past the caches: for results that they could not hold anyway.
  bool past_caches = false;
};

}  // namespace sparsevae
