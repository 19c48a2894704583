// multinomial_nll on the CPU: threads, pieces of rows and memory; the loops are in isa/.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <limits>
#include <tuple>

#include "nll_common.h"

namespace sparsevae {
namespace {

// A running maximum and sum (see MultinomialNllLoops::lse).
template <typename acc_t>
struct LseParts {
  acc_t max = -std::numeric_limits<acc_t>::infinity();
  double sum = 0;
};

// The log-sum-exp of a row from its pieces, in their order.
template <typename acc_t>
acc_t combined(const LseParts<acc_t>* parts, int64_t n) {
  double max = parts[0].max, sum = parts[0].sum;
  const auto shift = [](double m) { return std::isinf(m) ? 0.0 : m; };
  for (int64_t i = 1; i < n; ++i) {
    const double top = parts[i].max > max ? parts[i].max : max;
    // A sum of 0 goes with a maximum of -inf, whose exponential could be inf here.
    const double a = sum == 0 ? 0 : sum * std::exp(shift(max) - shift(top));
    const double b =
        parts[i].sum == 0 ? 0 : parts[i].sum * std::exp(shift(double(parts[i].max)) - shift(top));
    sum = a + b;
    max = top;
  }
  return static_cast<acc_t>(log_sum_exp(max, sum));
}

std::tuple<Tensor, Tensor, Tensor> multinomial_nll(const Tensor& logits_in, const Tensor& crow,
                                                   const Tensor& col, const Tensor& values) {
  const char* op = "multinomial_nll";
  check_nll(op, "logits", logits_in, crow, col, values);
  const Tensor logits = as_contiguous(logits_in);
  const NllPieces pieces(logits.size(0), logits.size(1));
  Tensor nll = torch::stable::new_empty(values, {pieces.rows});
  Tensor lse = torch::stable::new_empty(values, {pieces.rows});
  Tensor total = torch::stable::new_empty(values, {pieces.rows});

  dispatch_nll(op, logits, crow, col, values, [&](auto scalar_type, const auto& target) {
    using scalar_t = typename decltype(scalar_type)::type;
    using acc_t = typename NllPiece<scalar_t>::acc_t;
    const auto& loops = loops_of<scalar_t>(nll_tables().multinomial);
    const auto* x = static_cast<const scalar_t*>(logits.data_ptr());
    auto *nll_of = static_cast<acc_t*>(nll.data_ptr()),
         *lse_of = static_cast<acc_t*>(lse.data_ptr()),
         *total_of = static_cast<acc_t*>(total.data_ptr());
    std::vector<LseParts<acc_t>> parts(pieces.count());

    const auto finish = [&](int64_t row, std::vector<int32_t>& places) {
      lse_of[row] = combined(parts.data() + row * pieces.per_row, pieces.per_row);
      total_of[row] = target.total(row);
      double sum = 0;
      for (int64_t unit = row * pieces.per_row; unit < (row + 1) * pieces.per_row; ++unit) {
        NllPiece<scalar_t> piece;
        piece.x = x + row * pieces.cols + pieces.first(unit);
        target.enter(piece, row, pieces.first(unit), pieces.last(unit), places);
        sum += loops.value(piece, lse_of[row]);
      }
      nll_of[row] = static_cast<acc_t>(sum);
    };

    over_nll_units(pieces.count(), logits.numel(), [&](int64_t first, int64_t last, auto& places) {
      for (int64_t unit = first; unit < last; ++unit) {
        const int64_t row = unit / pieces.per_row;
        NllPiece<scalar_t> piece;
        piece.x = x + row * pieces.cols + pieces.first(unit);
        piece.cols = pieces.last(unit) - pieces.first(unit);
        loops.lse(piece, &parts[unit].max, &parts[unit].sum);
        if (pieces.per_row == 1) finish(row, places);  // while the row is in the cache
      }
    });
    if (pieces.per_row > 1)
      over_nll_units(pieces.rows, col.numel(), [&](int64_t first, int64_t last, auto& places) {
        for (int64_t row = first; row < last; ++row) finish(row, places);
      });
  });
  return {nll, lse, total};
}

Tensor multinomial_nll_backward(const Tensor& grad_in, const Tensor& logits_in,
                                const Tensor& lse_in, const Tensor& total_in, const Tensor& crow,
                                const Tensor& col, const Tensor& values) {
  const char* op = "multinomial_nll_backward";
  check_nll(op, "logits", logits_in, crow, col, values);
  check_row_gradient(op, grad_in, "logits", logits_in);
  check_accumulated(op, "lse", lse_in, logits_in.size(0), "logits", logits_in);
  check_accumulated(op, "total", total_in, logits_in.size(0), "logits", logits_in);
  const Tensor logits = as_contiguous(logits_in), grad = as_contiguous(grad_in),
               lse = as_contiguous(lse_in), total = as_contiguous(total_in);
  const NllPieces pieces(logits.size(0), logits.size(1));
  Tensor out = new_gradient(logits, true);

  dispatch_nll(op, logits, crow, col, values, [&](auto scalar_type, const auto& target) {
    using scalar_t = typename decltype(scalar_type)::type;
    using acc_t = typename NllPiece<scalar_t>::acc_t;
    const auto& loops = loops_of<scalar_t>(nll_tables().multinomial);
    const auto* x = static_cast<const scalar_t*>(logits.data_ptr());
    const auto *grad_of = static_cast<const acc_t*>(grad.data_ptr()),
               *lse_of = static_cast<const acc_t*>(lse.data_ptr()),
               *total_of = static_cast<const acc_t*>(total.data_ptr());
    auto* to = static_cast<scalar_t*>(out.data_ptr());
    over_nll_units(pieces.count(), logits.numel(), [&](int64_t first, int64_t last, auto& places) {
      for (int64_t unit = first; unit < last; ++unit) {
        const int64_t row = unit / pieces.per_row, at = row * pieces.cols + pieces.first(unit);
        NllPiece<scalar_t> piece;
        piece.x = x + at;
        piece.grad = to + at;
        piece.cols = pieces.last(unit) - pieces.first(unit);
        piece.weight = grad_of[row];
        piece.past_caches = past_caches(out);
        target.enter(piece, row, pieces.first(unit), pieces.last(unit), places);
        const bool is_empty = target.begin(row) == target.end(row);
        loops.gradient(piece, is_empty ? std::numeric_limits<acc_t>::infinity() : lse_of[row],
                       total_of[row]);
      }
    });
  });
  return out;
}

}  // namespace
}  // namespace sparsevae

STABLE_TORCH_LIBRARY_IMPL(sparsevae_ext, CPU, m) {
  m.impl("multinomial_nll", TORCH_BOX(&sparsevae::multinomial_nll));
  m.impl("multinomial_nll_backward", TORCH_BOX(&sparsevae::multinomial_nll_backward));
}
