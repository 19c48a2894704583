// bernoulli_nll, poisson_nll and gaussian_nll on the CPU: threads, pieces of rows and memory; the
// loops are in isa/.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <tuple>

#include "nll_common.h"

namespace sparsevae {
namespace {

// The gradient of a log-variance that rows share is summed within blocks of rows and then over the
// blocks. Their number depends on the shape alone, and so do the bits of the sum.
constexpr int64_t kMaxRowBlocks = 32;
constexpr int64_t kMinBlockRows = 8;

const Tensor* pointer_to(const std::optional<Tensor>& t) { return t ? &*t : nullptr; }

// Where row `row`, column `column` of a (B, N) or shared (N,) parameter is.
template <typename scalar_t>
const scalar_t* row_of(const Tensor* t, int64_t row, int64_t column, int64_t cols) {
  if (!t) return nullptr;
  return static_cast<const scalar_t*>(t->data_ptr()) + (t->dim() == 2 ? row * cols : 0) + column;
}

Tensor forward(const char* op, const char* name, const NllTable& table, const Tensor& x_in,
               const std::optional<Tensor>& x2_in, const Tensor& crow, const Tensor& col,
               const Tensor& values) {
  check_nll(op, name, x_in, crow, col, values);
  const Tensor x = as_contiguous(x_in);
  const std::optional<Tensor> x2 = as_contiguous(x2_in);
  const NllPieces pieces(x.size(0), x.size(1));
  Tensor nll = torch::stable::new_empty(values, {pieces.rows});
  dispatch_nll(op, x, crow, col, values, [&](auto scalar_type, const auto& target) {
    using scalar_t = typename decltype(scalar_type)::type;
    using acc_t = typename NllPiece<scalar_t>::acc_t;
    const auto& loops = loops_of<scalar_t>(table);
    std::vector<double> parts(pieces.count());
    over_nll_units(pieces.count(), x.numel(), [&](int64_t first, int64_t last, auto& places) {
      for (int64_t unit = first; unit < last; ++unit) {
        const int64_t row = unit / pieces.per_row;
        NllPiece<scalar_t> piece;
        piece.x = row_of<scalar_t>(&x, row, pieces.first(unit), pieces.cols);
        piece.x2 = row_of<scalar_t>(pointer_to(x2), row, pieces.first(unit), pieces.cols);
        piece.cols = pieces.last(unit) - pieces.first(unit);
        piece.with_log_2pi = false;
        target.enter(piece, row, pieces.first(unit), pieces.last(unit), places);
        parts[unit] = loops.value(piece);
      }
    });
    auto* out = static_cast<acc_t*>(nll.data_ptr());
    for (int64_t row = 0; row < pieces.rows; ++row) {
      double sum = 0;
      for (int64_t i = 0; i < pieces.per_row; ++i) sum += parts[row * pieces.per_row + i];
      out[row] = static_cast<acc_t>(sum);
    }
  });
  return nll;
}

// The piece of a row for a gradient, but for what it writes.
template <typename scalar_t, typename target_t>
NllPiece<scalar_t> gradient_piece(const Tensor& grad, const Tensor& x, const Tensor* x2,
                                  const target_t& target, int64_t row, int64_t first, int64_t last,
                                  std::vector<int32_t>& places) {
  using acc_t = typename NllPiece<scalar_t>::acc_t;
  NllPiece<scalar_t> piece;
  piece.x = row_of<scalar_t>(&x, row, first, x.size(1));
  piece.x2 = row_of<scalar_t>(x2, row, first, x.size(1));
  piece.cols = last - first;
  piece.weight = static_cast<const acc_t*>(grad.data_ptr())[row];
  target.enter(piece, row, first, last, places);
  return piece;
}

template <typename scalar_t>
scalar_t* into(Tensor& gradient, int64_t at) {
  return gradient.numel() ? static_cast<scalar_t*>(gradient.data_ptr()) + at : nullptr;
}

std::tuple<Tensor, Tensor> backward(const char* op, const char* name, const NllTable& table,
                                    const Tensor& grad_in, const Tensor& x_in,
                                    const std::optional<Tensor>& x2_in, const Tensor& crow,
                                    const Tensor& col, const Tensor& values, bool wants_x,
                                    bool wants_x2) {
  check_nll(op, name, x_in, crow, col, values);
  check_row_gradient(op, grad_in, name, x_in);
  const Tensor x = as_contiguous(x_in), grad = as_contiguous(grad_in);
  const std::optional<Tensor> x2 = as_contiguous(x2_in);
  const NllPieces pieces(x.size(0), x.size(1));
  Tensor grad_x = new_gradient(x, wants_x), grad_x2 = new_gradient(x, wants_x2);
  dispatch_nll(op, x, crow, col, values, [&](auto scalar_type, const auto& target) {
    using scalar_t = typename decltype(scalar_type)::type;
    const auto& loops = loops_of<scalar_t>(table);
    over_nll_units(pieces.count(), x.numel(), [&](int64_t first, int64_t last, auto& places) {
      for (int64_t unit = first; unit < last; ++unit) {
        const int64_t row = unit / pieces.per_row, column = pieces.first(unit);
        auto piece = gradient_piece<scalar_t>(grad, x, pointer_to(x2), target, row, column,
                                              pieces.last(unit), places);
        piece.grad = into<scalar_t>(grad_x, row * pieces.cols + column);
        piece.grad2 = into<scalar_t>(grad_x2, row * pieces.cols + column);
        piece.past_caches = past_caches(wants_x ? grad_x : grad_x2);
        loops.gradient(piece);
      }
    });
  });
  return {grad_x, grad_x2};
}

// With a log-variance that rows share, and its gradient wanted.
std::tuple<Tensor, Tensor> backward_shared(const char* op, const NllTable& table,
                                           const Tensor& grad_in, const Tensor& mean_in,
                                           const Tensor& logvar_in, const Tensor& crow,
                                           const Tensor& col, const Tensor& values,
                                           bool wants_mean) {
  check_nll(op, "mean", mean_in, crow, col, values);
  check_row_gradient(op, grad_in, "mean", mean_in);
  const Tensor mean = as_contiguous(mean_in), grad = as_contiguous(grad_in),
               logvar = as_contiguous(logvar_in);
  const NllPieces pieces(mean.size(0), mean.size(1));
  Tensor grad_mean = new_gradient(mean, wants_mean);
  Tensor grad_logvar = torch::stable::new_empty(values, {pieces.cols});
  const int64_t most = std::max<int64_t>(1, kMaxRowBlocks / pieces.per_row);
  const int64_t block_rows = std::max(kMinBlockRows, (pieces.rows + most - 1) / most);
  const int64_t blocks = (pieces.rows + block_rows - 1) / block_rows;
  dispatch_nll(op, mean, crow, col, values, [&](auto scalar_type, const auto& target) {
    using scalar_t = typename decltype(scalar_type)::type;
    using acc_t = typename NllPiece<scalar_t>::acc_t;
    const auto& loops = loops_of<scalar_t>(table);
    std::vector<acc_t> sums(blocks * pieces.cols);
    const int64_t units = blocks * pieces.per_row;
    over_nll_units(units, mean.numel(), [&](int64_t first, int64_t last, auto& places) {
      for (int64_t unit = first; unit < last; ++unit) {
        const int64_t block = unit / pieces.per_row, column = pieces.first(unit);
        const int64_t end = std::min(pieces.rows, (block + 1) * block_rows);
        for (int64_t row = block * block_rows; row < end; ++row) {
          auto piece = gradient_piece<scalar_t>(grad, mean, &logvar, target, row, column,
                                                pieces.last(unit), places);
          piece.grad = into<scalar_t>(grad_mean, row * pieces.cols + column);
          piece.grad_log_theta = sums.data() + block * pieces.cols + column;
          piece.past_caches = past_caches(grad_mean);
          loops.gradient(piece);
        }
      }
    });
    auto* out = static_cast<acc_t*>(grad_logvar.data_ptr());
    for (int64_t j = 0; j < pieces.cols; ++j) {
      double sum = 0;
      for (int64_t block = 0; block < blocks; ++block) sum += sums[block * pieces.cols + j];
      out[j] = static_cast<acc_t>(sum);
    }
  });
  return {grad_mean, grad_logvar};
}

Tensor bernoulli_nll(const Tensor& logits, const Tensor& crow, const Tensor& col,
                     const Tensor& values) {
  return forward("bernoulli_nll", "logits", nll_tables().bernoulli, logits, std::nullopt, crow, col,
                 values);
}

Tensor bernoulli_nll_backward(const Tensor& grad, const Tensor& logits, const Tensor& crow,
                              const Tensor& col, const Tensor& values) {
  return std::get<0>(backward("bernoulli_nll_backward", "logits", nll_tables().bernoulli, grad,
                              logits, std::nullopt, crow, col, values, true, false));
}

Tensor poisson_nll(const Tensor& log_rate, const Tensor& crow, const Tensor& col,
                   const Tensor& values) {
  return forward("poisson_nll", "log_rate", nll_tables().poisson, log_rate, std::nullopt, crow, col,
                 values);
}

Tensor poisson_nll_backward(const Tensor& grad, const Tensor& log_rate, const Tensor& crow,
                            const Tensor& col, const Tensor& values) {
  return std::get<0>(backward("poisson_nll_backward", "log_rate", nll_tables().poisson, grad,
                              log_rate, std::nullopt, crow, col, values, true, false));
}

Tensor gaussian_nll(const Tensor& mean, const std::optional<Tensor>& logvar, const Tensor& crow,
                    const Tensor& col, const Tensor& values) {
  const char* op = "gaussian_nll";
  check_dim(op, "mean", mean, 2);
  check_logvar(op, mean, logvar);
  return forward(op, "mean", nll_tables().gaussian, mean, logvar, crow, col, values);
}

std::tuple<Tensor, Tensor> gaussian_nll_backward(const Tensor& grad, const Tensor& mean,
                                                 const std::optional<Tensor>& logvar,
                                                 const Tensor& crow, const Tensor& col,
                                                 const Tensor& values, bool wants_mean,
                                                 bool wants_logvar) {
  const char* op = "gaussian_nll_backward";
  check_dim(op, "mean", mean, 2);
  check_logvar(op, mean, logvar);
  SPARSEVAE_CHECK(logvar || !wants_logvar, op,
                  "(): expected a logvar, whose gradient is wanted, but got None");
  const NllTable& table = nll_tables().gaussian;
  if (wants_logvar && logvar->dim() == 1)
    return backward_shared(op, table, grad, mean, *logvar, crow, col, values, wants_mean);
  return backward(op, "mean", table, grad, mean, logvar, crow, col, values, wants_mean,
                  wants_logvar);
}

}  // namespace
}  // namespace sparsevae

STABLE_TORCH_LIBRARY_IMPL(sparsevae_ext, CPU, m) {
  m.impl("bernoulli_nll", TORCH_BOX(&sparsevae::bernoulli_nll));
  m.impl("bernoulli_nll_backward", TORCH_BOX(&sparsevae::bernoulli_nll_backward));
  m.impl("poisson_nll", TORCH_BOX(&sparsevae::poisson_nll));
  m.impl("poisson_nll_backward", TORCH_BOX(&sparsevae::poisson_nll_backward));
  m.impl("gaussian_nll", TORCH_BOX(&sparsevae::gaussian_nll));
  m.impl("gaussian_nll_backward", TORCH_BOX(&sparsevae::gaussian_nll_backward));
}
