// The negative binomial likelihoods on the CPU: checks, threads, memory and the order of sums; the
// loops are in isa/.
//
// The work is cut into blocks of rows and, where no pass over a whole row is needed, pieces of
// columns. Both are fixed by the sizes, and sums over rows or pieces are added in their order, so
// the bits do not depend on the number of threads.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cmath>

#include "../common/csr_checks.h"
#include "../ops/negative_binomial_nll.h"
#include "contiguous.h"
#include "negative_binomial_loops_of.h"
#include "nll_common.h"
#include "parallel.h"

namespace sparsevae {
namespace {

constexpr int64_t kMinBlockRows = 16;
constexpr int64_t kMaxRowBlocks = 32;
constexpr int64_t kPieceCols = 4096;
// What a cell costs, in the multiply-adds that kSerialWork counts.
constexpr int64_t kCellWork = 16;

// What both directions take; grad and logsumexp are those of the backward ops.
struct Arguments {
  const char* op;
  Tensor log_mu, log_theta;
  std::optional<Tensor> zero_logits, library;
  Tensor crow, col, values;

  Arguments(const char* op, const Tensor& log_mu, const Tensor& log_theta,
            const Tensor* zero_logits, const std::optional<Tensor>& library, const Tensor& crow,
            const Tensor& col, const Tensor& values)
      : op(op),
        log_mu(as_contiguous(log_mu)),
        log_theta(as_contiguous(log_theta)),
        zero_logits(zero_logits ? std::optional(as_contiguous(*zero_logits)) : std::nullopt),
        library(as_contiguous(library)),
        crow(as_contiguous(crow)),
        col(as_contiguous(col)),
        values(as_contiguous(values)) {}

  int64_t rows() const { return log_mu.size(0); }
  int64_t cols() const { return log_mu.size(1); }
};

// What the gradients are written to; null where not wanted.
template <typename scalar_t>
struct Gradients {
  using acc_t = wide_t<scalar_t>;
  const acc_t* of_nll = nullptr;  // (rows,)
  scalar_t* log_mu = nullptr;
  acc_t* log_theta = nullptr;
  scalar_t* zero_logits = nullptr;
  acc_t* library = nullptr;
  bool past_caches = false;  // log_mu and zero_logits are written past them
};

template <typename scalar_t, typename index_t>
class Work {
 public:
  using acc_t = wide_t<scalar_t>;

  explicit Work(const Arguments& a)
      : rows_(a.rows()),
        cols_(a.cols()),
        crow_(data<index_t>(a.crow)),
        col_(data<index_t>(a.col)),
        values_(data<acc_t>(a.values)),
        log_mu_(data<scalar_t>(a.log_mu)),
        zero_logits_(data<scalar_t>(a.zero_logits)),
        log_theta_(data<acc_t>(a.log_theta)),
        library_(data<acc_t>(a.library)),
        shared_theta_(a.log_theta.dim() == 1),
        loops_(loops_of<scalar_t>(a.zero_logits ? negative_binomial_tables().inflated
                                                : negative_binomial_tables().plain)),
        library_loops_(loops_of<scalar_t>(negative_binomial_tables().library)) {
    check_entries(a);
    piece_cols_ = library_ ? std::max<int64_t>(cols_, 1) : kPieceCols;
    pieces_ = std::max<int64_t>(1, (cols_ + piece_cols_ - 1) / piece_cols_);
    block_rows_ = std::max(kMinBlockRows, (rows_ + kMaxRowBlocks - 1) / kMaxRowBlocks);
    blocks_ = (rows_ + block_rows_ - 1) / block_rows_;
    parts_ = parts_for(rows_ * cols_ * kCellWork);
    if (shared_theta_) {
      theta_.resize(cols_);
      parallel_ranges(parts_for(cols_ * kCellWork), cols_, [&](int64_t first, int64_t last) {
        exp_of(log_theta_ + first, last - first, theta_.data() + first);
      });
    }
  }

  void forward(acc_t* nll, acc_t* logsumexp) {
    std::vector<double> sums(rows_ * pieces_);
    for_each_task([&](int64_t block, int64_t piece, std::vector<int32_t>& places) {
      for (int64_t r = block * block_rows_; r < end_of(block); ++r) {
        acc_t shift = 0;
        if (library_) {
          logsumexp[r] = static_cast<acc_t>(library_loops_.logsumexp(log_mu_ + r * cols_, cols_));
          shift = std::log(library_[r]) - logsumexp[r];
        }
        sums[r * pieces_ + piece] = loops_.value(piece_of(r, piece, shift, places));
      }
    });
    for (int64_t r = 0; r < rows_; ++r) {
      double sum = 0;
      for (int64_t piece = 0; piece < pieces_; ++piece) sum += sums[r * pieces_ + piece];
      nll[r] = static_cast<acc_t>(sum);
    }
  }

  void backward(const acc_t* logsumexp, const Gradients<scalar_t>& out) {
    const bool summed = out.log_theta && shared_theta_;
    std::vector<acc_t> theta_sums(summed ? blocks_ * cols_ : 0);
    for_each_task([&](int64_t block, int64_t piece, std::vector<int32_t>& places) {
      const int64_t first = piece * piece_cols_;
      std::vector<acc_t> wide(library_ && out.log_mu ? cols_ : 0);
      for (int64_t r = block * block_rows_; r < end_of(block); ++r) {
        const int64_t at = r * cols_ + first;
        acc_t shift = library_ ? std::log(library_[r]) - logsumexp[r] : acc_t(0);
        NllPiece<scalar_t> p = piece_of(r, piece, shift, places);
        p.weight = out.of_nll[r];
        p.past_caches = out.past_caches;
        if (out.zero_logits) p.grad2 = out.zero_logits + at;
        if (summed) p.grad_log_theta = theta_sums.data() + block * cols_ + first;
        if (out.log_theta && !shared_theta_) {
          p.grad_log_theta = out.log_theta + at;
          std::fill_n(p.grad_log_theta, p.cols, acc_t(0));
        }
        if (!library_) {
          if (out.log_mu) p.grad = out.log_mu + at;
          loops_.gradient(p);
          continue;
        }
        // In the shifted log-means, and what the softmax takes from each of them.
        double total = 0;
        p.grad_sum = &total;
        if (out.log_mu) p.wide_grad = wide.data();
        loops_.gradient(p);
        if (out.log_mu)
          library_loops_.gradient(p.x, wide.data(), cols_, logsumexp[r], static_cast<acc_t>(total),
                                  out.log_mu + at);
        if (out.library) out.library[r] = static_cast<acc_t>(total) / library_[r];
      }
    });
    if (summed) combine(theta_sums, out.log_theta);
  }

 private:
  void check_entries(const Arguments& a) const {
    const int64_t nnz = a.col.numel();
    check_crow(a.op, crow_, rows_, nnz);
    check_index(a.op, "column index", col_, nnz, "n_features", cols_);
    const int64_t row = first_unsorted_row(crow_, col_, 0, rows_);
    if (row >= 0) throw_unsorted_row(a.op, row);
    SPARSEVAE_CHECK(!a.library || cols_ < kMaxPieceCols, a.op, "(): expected fewer than ",
                    kMaxPieceCols, " columns beside a library, but got ", cols_);
  }

  int64_t end_of(int64_t block) const { return std::min(rows_, (block + 1) * block_rows_); }

  // body(block of rows, piece of columns, memory for places) for all of them, on all threads.
  template <typename F>
  void for_each_task(const F& body) const {
    const int64_t tasks = blocks_ * pieces_, parts = std::min(parts_, tasks);
    parallel_ranges(parts, tasks, [&](int64_t first, int64_t last) {
      std::vector<int32_t> places;
      for (int64_t task = first; task < last; ++task) body(task / pieces_, task % pieces_, places);
    });
  }

  NllPiece<scalar_t> piece_of(int64_t row, int64_t piece, acc_t shift,
                              std::vector<int32_t>& places) const {
    const int64_t first = piece * piece_cols_, last = std::min(cols_, first + piece_cols_);
    const index_t* begin = col_ + crow_[row];
    const index_t* end = col_ + crow_[row + 1];
    if (pieces_ > 1) {
      begin = std::lower_bound(begin, end, static_cast<index_t>(first));
      end = last < cols_ ? std::lower_bound(begin, end, static_cast<index_t>(last)) : end;
    }
    places.resize(end - begin);
    for (int64_t e = 0; e < end - begin; ++e) places[e] = static_cast<int32_t>(begin[e] - first);
    NllPiece<scalar_t> p;
    p.cols = last - first;
    p.x = log_mu_ + row * cols_ + first;
    if (zero_logits_) p.x2 = zero_logits_ + row * cols_ + first;
    p.log_theta = log_theta_ + (shared_theta_ ? first : row * cols_ + first);
    if (shared_theta_) p.theta = theta_.data() + first;
    p.at = places.data();
    p.value = values_ + (begin - col_);
    p.entries = end - begin;
    p.shift = shift;
    return p;
  }

  // Adds the blocks of rows up in their order.
  void combine(const std::vector<acc_t>& sums, acc_t* out) const {
    parallel_ranges(parts_for(blocks_ * cols_), cols_, [&](int64_t first, int64_t last) {
      std::fill(out + first, out + last, acc_t(0));
      for (int64_t b = 0; b < blocks_; ++b)
        for (int64_t j = first; j < last; ++j) out[j] += sums[b * cols_ + j];
    });
  }

  int64_t rows_, cols_;
  const index_t* crow_;
  const index_t* col_;
  const acc_t* values_;
  const scalar_t* log_mu_;
  const scalar_t* zero_logits_;
  const acc_t* log_theta_;
  const acc_t* library_;
  bool shared_theta_;
  const NllLoops<scalar_t>& loops_;
  const LibraryLoops<scalar_t>& library_loops_;
  int64_t piece_cols_, pieces_, block_rows_, blocks_, parts_;
  std::vector<acc_t> theta_;
};

// body(Work, Type<scalar_t>) for the dtypes of the arguments.
template <typename F>
void with_work(const Arguments& a, const F& body) {
  dispatch(a.op, a.crow, a.log_mu, [&](auto index_type, auto scalar_type) {
    using scalar_t = typename decltype(scalar_type)::type;
    body(Work<scalar_t, typename decltype(index_type)::type>(a), scalar_type);
  });
}

std::tuple<Tensor, Tensor> forward(const char* op, const Tensor& log_mu, const Tensor& log_theta,
                                   const Tensor* zero_logits, const std::optional<Tensor>& library,
                                   const Tensor& crow, const Tensor& col, const Tensor& values) {
  check_negative_binomial(op, log_mu, log_theta, zero_logits, library, crow, col, values);
  const Arguments a(op, log_mu, log_theta, zero_logits, library, crow, col, values);
  Tensor nll = torch::stable::new_empty(log_theta, {a.rows()});
  Tensor logsumexp = torch::stable::new_empty(log_theta, {library ? a.rows() : int64_t{0}});
  with_work(a, [&](auto work, auto) {
    using acc_t = typename decltype(work)::acc_t;
    work.forward(static_cast<acc_t*>(nll.data_ptr()), static_cast<acc_t*>(logsumexp.data_ptr()));
  });
  return {nll, logsumexp};
}

Tensor wanted(const Tensor& like, bool wants) {
  if (!wants) return torch::stable::new_empty(like, {int64_t{0}});
  return like.dim() == 1 ? new_output(like, {like.size(0)})
                         : new_output(like, {like.size(0), like.size(1)});
}

std::tuple<Tensor, Tensor, Tensor, Tensor> backward(
    const char* op, const Tensor& grad_in, const Tensor& log_mu, const Tensor& log_theta,
    const Tensor* zero_logits, const std::optional<Tensor>& library, const Tensor& logsumexp_in,
    const Tensor& crow, const Tensor& col, const Tensor& values, bool wants_log_mu,
    bool wants_log_theta, bool wants_zero_logits, bool wants_library) {
  check_negative_binomial(op, log_mu, log_theta, zero_logits, library, crow, col, values);
  check_negative_binomial_backward(op, grad_in, log_mu, library, logsumexp_in);
  SPARSEVAE_CHECK(library || !wants_library, op, "(): expected a library to have a gradient of");
  const Arguments a(op, log_mu, log_theta, zero_logits, library, crow, col, values);
  const Tensor grad = as_contiguous(grad_in), logsumexp = as_contiguous(logsumexp_in);
  Tensor grad_log_mu = wanted(log_mu, wants_log_mu);
  Tensor grad_log_theta = wanted(log_theta, wants_log_theta);
  Tensor grad_zero_logits = wanted(log_mu, wants_zero_logits && zero_logits);
  Tensor grad_library = wanted(grad, wants_library);
  with_work(a, [&](auto work, auto scalar_type) {
    using scalar_t = typename decltype(scalar_type)::type;
    using acc_t = typename decltype(work)::acc_t;
    Gradients<scalar_t> out;
    out.of_nll = data<acc_t>(grad);
    if (wants_log_mu) out.log_mu = static_cast<scalar_t*>(grad_log_mu.data_ptr());
    if (wants_log_theta) out.log_theta = static_cast<acc_t*>(grad_log_theta.data_ptr());
    if (wants_zero_logits && zero_logits)
      out.zero_logits = static_cast<scalar_t*>(grad_zero_logits.data_ptr());
    out.past_caches = past_caches(wants_log_mu ? grad_log_mu : grad_zero_logits);
    if (wants_library) out.library = static_cast<acc_t*>(grad_library.data_ptr());
    work.backward(data<acc_t>(logsumexp), out);
  });
  return {grad_log_mu, grad_log_theta, grad_zero_logits, grad_library};
}

// ---- the ops -----------------------------------------------------------------------------------

std::tuple<Tensor, Tensor> negative_binomial_nll(const Tensor& log_mu, const Tensor& log_theta,
                                                 const std::optional<Tensor>& library,
                                                 const Tensor& crow, const Tensor& col,
                                                 const Tensor& values) {
  return forward("negative_binomial_nll", log_mu, log_theta, nullptr, library, crow, col, values);
}

std::tuple<Tensor, Tensor, Tensor> negative_binomial_nll_backward(
    const Tensor& grad, const Tensor& log_mu, const Tensor& log_theta,
    const std::optional<Tensor>& library, const Tensor& logsumexp, const Tensor& crow,
    const Tensor& col, const Tensor& values, bool wants_log_mu, bool wants_log_theta,
    bool wants_library) {
  auto [in_mu, in_theta, none, in_library] =
      backward("negative_binomial_nll_backward", grad, log_mu, log_theta, nullptr, library,
               logsumexp, crow, col, values, wants_log_mu, wants_log_theta, false, wants_library);
  return {in_mu, in_theta, in_library};
}

std::tuple<Tensor, Tensor> zero_inflated_negative_binomial_nll(
    const Tensor& log_mu, const Tensor& log_theta, const Tensor& zero_logits,
    const std::optional<Tensor>& library, const Tensor& crow, const Tensor& col,
    const Tensor& values) {
  return forward("zero_inflated_negative_binomial_nll", log_mu, log_theta, &zero_logits, library,
                 crow, col, values);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> zero_inflated_negative_binomial_nll_backward(
    const Tensor& grad, const Tensor& log_mu, const Tensor& log_theta, const Tensor& zero_logits,
    const std::optional<Tensor>& library, const Tensor& logsumexp, const Tensor& crow,
    const Tensor& col, const Tensor& values, bool wants_log_mu, bool wants_log_theta,
    bool wants_zero_logits, bool wants_library) {
  return backward("zero_inflated_negative_binomial_nll_backward", grad, log_mu, log_theta,
                  &zero_logits, library, logsumexp, crow, col, values, wants_log_mu,
                  wants_log_theta, wants_zero_logits, wants_library);
}

}  // namespace
}  // namespace sparsevae

STABLE_TORCH_LIBRARY_IMPL(sparsevae_ext, CPU, m) {
  m.impl("negative_binomial_nll", TORCH_BOX(&sparsevae::negative_binomial_nll));
  m.impl("negative_binomial_nll_backward", TORCH_BOX(&sparsevae::negative_binomial_nll_backward));
  m.impl("zero_inflated_negative_binomial_nll",
         TORCH_BOX(&sparsevae::zero_inflated_negative_binomial_nll));
  m.impl("zero_inflated_negative_binomial_nll_backward",
         TORCH_BOX(&sparsevae::zero_inflated_negative_binomial_nll_backward));
}
