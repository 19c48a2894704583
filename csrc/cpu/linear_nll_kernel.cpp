// linear_nll on the CPU: the target's entries, the epilogues of a panel, threads. The order of the
// panels and the matrix products are in ../ops/linear_nll_driver.h, the inner loops in isa/.
//
// Threads share blocks of rows whose size depends on the number of rows alone. A row's sums are
// made by one thread in column order; what the rows share (gradients of the biases, of the
// dispersion of a column) is summed per block and then over the blocks. So the bits of an epilogue
// do not depend on the number of threads; those of the library's matrix products may.
//
// Everything here is computed in A (float or double): the rows of a panel of 16-bit predictions are
// widened into a thread's buffer, where the bias is added too, and their gradients rounded back.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "../common/csr_checks.h"
#include "../ops/linear_nll_driver.h"
#include "contiguous.h"
#include "dispatch.h"
#include "isa/linear_nll_isa.h"
#include "linear_nll_entries.h"
#include "negative_binomial_loops_of.h"
#include "nll_loops_of.h"
#include "output.h"
#include "parallel.h"

namespace sparsevae {
namespace {

// What an element costs, in the multiply-adds that kSerialWork counts.
constexpr int64_t kElementWork = 16;
// Blocks of rows: so many where there are rows enough, of at most so many rows.
constexpr int64_t kBlocks = 32, kMinBlockRows = 4, kMaxBlockRows = 64;

// In the wide dtype and contiguous.
std::optional<Tensor> widened(const std::optional<Tensor>& t, ScalarType wide) {
  return t ? std::optional(as_contiguous(cast(detached(*t), wide))) : std::nullopt;
}

// The loops of a likelihood that is a sum over cells, null for the multinomial.
template <typename acc_t>
const NllLoops<acc_t>* cell_loops(Likelihood likelihood) {
  switch (likelihood) {
    case Likelihood::kBernoulli:
      return &loops_of<acc_t>(nll_tables().bernoulli);
    case Likelihood::kPoisson:
      return &loops_of<acc_t>(nll_tables().poisson);
    case Likelihood::kGaussian:
      return &loops_of<acc_t>(nll_tables().gaussian);
    case Likelihood::kNegativeBinomial:
      return &loops_of<acc_t>(negative_binomial_tables().plain);
    case Likelihood::kZeroInflatedNegativeBinomial:
      return &loops_of<acc_t>(negative_binomial_tables().inflated);
    case Likelihood::kMultinomial:
      break;
  }
  return nullptr;
}

// What the rows of a block add to numbers that all rows share: (blocks, cols) of a panel.
template <typename acc_t>
class SharedSums {
 public:
  SharedSums(bool wanted, int64_t blocks, int64_t width)
      : parts_(wanted ? blocks * width : 0), blocks_(blocks), width_(width) {}

  // The block's part of this panel, as zeros, or null.
  acc_t* fresh(int64_t block, int64_t cols) {
    if (parts_.empty()) return nullptr;
    acc_t* part = parts_.data() + block * width_;
    std::fill(part, part + cols, acc_t(0));
    return part;
  }

  // out[j] = the sum over the blocks
  void write(int64_t cols, acc_t* out) const {
    if (parts_.empty()) return;
    std::copy(parts_.data(), parts_.data() + cols, out);
    for (int64_t b = 1; b < blocks_; ++b) {
      const acc_t* part = parts_.data() + b * width_;
      for (int64_t j = 0; j < cols; ++j) out[j] += part[j];
    }
  }

 private:
  std::vector<acc_t> parts_;
  int64_t blocks_, width_;
};

template <typename scalar_t>
class CpuEpilogues {
 public:
  using acc_t = wide_t<scalar_t>;
  using Piece = NllPiece<acc_t>;

  CpuEpilogues(const LinearNll& a, const PanelPlan& plan, const PanelEntries<acc_t>& entries,
               LinearNllSums& sums)
      : a_(a),
        own_(loops_of<scalar_t>(isa_table<LinearNllTable>())),
        multinomial_(loops_of<acc_t>(nll_tables().multinomial)),
        loops_(cell_loops<acc_t>(a.likelihood)),
        entries_(entries),
        bias_(widened(a.bias, a.wide())),
        zero_bias_(widened(a.zero_bias, a.wide())),
        log_scale_(widened(a.log_scale, a.wide())),
        library_(widened(a.library, a.wide())),
        row_weight_(widened(a.row_weight, a.wide())),
        sums_(sums),
        width_(plan.width),
        block_rows_(std::clamp((a.rows() + kBlocks - 1) / kBlocks, kMinBlockRows, kMaxBlockRows)),
        blocks_((a.rows() + block_rows_ - 1) / block_rows_),
        bias_sums_(a.need_bias, blocks_, plan.width),
        zero_bias_sums_(a.need_zero_bias, blocks_, plan.width),
        scale_sums_(a.need_log_scale && a.log_scale->dim() == 1, blocks_, plan.width),
        nll_(a.rows(), 0.0),
        slope_(a.library ? a.rows() : 0, 0.0),
        max_(has_lse() ? a.rows() : 0, -std::numeric_limits<acc_t>::infinity()),
        exp_sum_(has_lse() ? a.rows() : 0, 0.0),
        lse_(has_lse() ? a.rows() : 0),
        shift_(a.rows(), acc_t(0)) {
    if (a.is_negative_binomial() && a.log_scale->dim() == 1) make_theta();
  }

  // ---- what the driver asks for -----------------------------------------------------------------

  Tensor make(const Tensor& like, std::vector<int64_t> sizes, ScalarType dtype) const {
    return new_output(like, sizes, dtype);
  }

  // Without the bias: it is added where a row is read.
  void multiply(const Tensor& out, const Tensor& h, const Tensor& weight, int64_t, int) const {
    mm_out(out, h, transposed(weight));
  }

  void accumulate(Tensor& total, const Tensor& part) const {
    const int64_t n = total.numel();
    auto* to = static_cast<acc_t*>(total.data_ptr());
    const auto* from = data<scalar_t>(part);
    parallel_ranges(parts_for(n), n, [&](int64_t begin, int64_t end) {
      own_.add(from + begin, end - begin, to + begin);
    });
  }

  void step(Step step, Panel& panel) {
    const int64_t parts = std::min(blocks_, parts_for(a_.rows() * panel.cols * kElementWork));
    parallel_ranges(parts, blocks_, [&](int64_t first, int64_t last) {
      Buffers buffers(width_);
      for (int64_t b = first; b < last; ++b) do_block(step, panel, b, buffers);
    });
    if (writes_gradients(step)) {
      bias_sums_.write(panel.cols, at(sums_.bias, panel.first));
      zero_bias_sums_.write(panel.cols, at(sums_.zero_bias, panel.first));
    }
    if (step == Step::kValueAndGradient || step == Step::kRowSums)
      scale_sums_.write(panel.cols, at(sums_.log_scale, panel.first));
  }

  void end_sweep(Step step) {
    if (step == Step::kLogSumExp) finish_lse();
    if (step == Step::kRowSums && a_.need_library) {
      for (int64_t r = 0; r < a_.rows(); ++r)
        at(sums_.library, 0)[r] = static_cast<acc_t>(slope_[r] / data<acc_t>(library_)[r]);
    }
    for (int64_t r = 0; r < a_.rows(); ++r) at(sums_.nll, 0)[r] = static_cast<acc_t>(nll_[r]);
  }

 private:
  // A thread's own rows of predictions and gradients, and the places of a row's entries.
  struct Buffers {
    explicit Buffers(int64_t width) : x(width), x2(width), grad(width), grad2(width) {}
    std::vector<acc_t> x, x2, grad, grad2;
    std::vector<int32_t> at;
  };

  void make_theta() {
    const int64_t n = a_.features();
    theta_.resize(n);
    parallel_ranges(parts_for(n * kElementWork), n, [&](int64_t begin, int64_t end) {
      exp_of(data<acc_t>(log_scale_) + begin, end - begin, theta_.data() + begin);
    });
  }

  static scalar_t* cells(const Tensor& t) { return static_cast<scalar_t*>(t.data_ptr()); }

  static acc_t* at(const Tensor& t, int64_t i) { return static_cast<acc_t*>(t.data_ptr()) + i; }

  bool has_lse() const { return a_.likelihood == Likelihood::kMultinomial || a_.library; }

  // A row of a panel as numbers that the loops take: in place where it is already.
  const acc_t* load(const scalar_t* row, const acc_t* bias, int64_t cols,
                    std::vector<acc_t>& buffer) const {
    if constexpr (std::is_same_v<scalar_t, acc_t>) {
      if (!bias) return row;
    }
    own_.load(row, bias, cols, buffer.data());
    return buffer.data();
  }

  // Where a row's gradient is written first: in the panel, unless it must be rounded.
  acc_t* gradient_row(scalar_t* row, std::vector<acc_t>& buffer) const {
    if constexpr (std::is_same_v<scalar_t, acc_t>)
      return row;
    else
      return buffer.data();
  }

  // The gradient of a row of predictions, complete in `grad`: rounded into the panel, and into the
  // bias's sums.
  void finish_gradient(const acc_t* grad, scalar_t* row, int64_t cols, acc_t* bias_sum) const {
    if constexpr (!std::is_same_v<scalar_t, acc_t>) own_.store(grad, cols, row);
    if (bias_sum) wide_.add(grad, cols, bias_sum);
  }

  void do_block(Step step, const Panel& panel, int64_t block, Buffers& buffers) {
    const int64_t cols = panel.cols, first = panel.first;
    const bool writes = writes_gradients(step);
    acc_t* bias_sum = writes ? bias_sums_.fresh(block, cols) : nullptr;
    acc_t* zero_bias_sum = writes ? zero_bias_sums_.fresh(block, cols) : nullptr;
    acc_t* scale_sum = scale_sums_.fresh(block, cols);
    const acc_t* bias = bias_ ? data<acc_t>(bias_) + first : nullptr;
    const acc_t* zero_bias = zero_bias_ ? data<acc_t>(zero_bias_) + first : nullptr;
    const bool two = panel.zero.has_value();
    const scalar_t *x = cells(panel.one.x), *x2 = two ? cells(panel.zero->x) : nullptr;
    scalar_t *grad = cells(panel.one.grad), *grad2 = two ? cells(panel.zero->grad) : nullptr;
    const int64_t last = std::min(a_.rows(), (block + 1) * block_rows_);
    for (int64_t r = block * block_rows_; r < last; ++r) {
      scalar_t *grad_row = grad + r * cols, *grad_row2 = two ? grad2 + r * cols : nullptr;
      Piece piece;
      piece.cols = cols;
      piece.x = load(x + r * cols, bias, cols, buffers.x);
      if (two) piece.x2 = load(x2 + r * cols, zero_bias, cols, buffers.x2);
      entries_.find(r, first, cols, buffers.at, piece);
      piece.shift = shift_[r];
      piece.weight = row_weight_ ? data<acc_t>(row_weight_)[r] : acc_t(0);
      set_scale(piece, r, first, scale_sum);
      switch (step) {
        case Step::kLogSumExp:
          log_sum_exp_of(piece, r);
          break;
        case Step::kValue:
          nll_[r] += loops_->value(piece);
          break;
        case Step::kRowSums:
          piece.grad_sum = &slope_[r];
          nll_[r] += loops_->value_and_gradient(piece);
          break;
        case Step::kValueAndGradient:
        case Step::kGradient:
          if (a_.need_x()) piece.grad = gradient_row(grad_row, buffers.grad);
          if (a_.need_x2()) piece.grad2 = gradient_row(grad_row2, buffers.grad2);
          write_gradient(step, piece, r, buffers);
          if (piece.grad) finish_gradient(piece.grad, grad_row, cols, bias_sum);
          if (piece.grad2) finish_gradient(piece.grad2, grad_row2, cols, zero_bias_sum);
      }
    }
  }

  // The row's log-dispersion or log-variance, and where its gradient goes. A step that follows
  // kRowSums must not add it again.
  void set_scale(Piece& piece, int64_t r, int64_t first, acc_t* shared) const {
    if (!log_scale_) return;
    const bool own = log_scale_->dim() == 2;
    const int64_t start = own ? r * a_.features() + first : first;
    const acc_t* scale = data<acc_t>(log_scale_) + start;
    if (a_.likelihood == Likelihood::kGaussian) {
      piece.x2 = scale;
    } else {
      piece.log_theta = scale;
      if (!own) piece.theta = theta_.data() + start;
    }
    if (a_.need_log_scale) piece.grad_log_theta = own ? at(sums_.log_scale, start) : shared;
  }

  void log_sum_exp_of(const Piece& piece, int64_t r) {
    multinomial_.lse(piece, &max_[r], &exp_sum_[r]);
    // sum of value * (0 - x); the log-sum-exp comes in when it is known.
    if (a_.likelihood == Likelihood::kMultinomial) nll_[r] += multinomial_.value(piece, acc_t(0));
  }

  void finish_lse() {
    for (int64_t r = 0; r < a_.rows(); ++r) {
      const double lse = log_sum_exp(static_cast<double>(max_[r]), exp_sum_[r]);
      lse_[r] = static_cast<acc_t>(lse);
      if (a_.library) {
        shift_[r] = static_cast<acc_t>(std::log(double(data<acc_t>(library_)[r])) - lse);
      } else if (entries_.count(r) > 0) {
        nll_[r] += entries_.total(r) * lse;
      } else {
        lse_[r] = std::numeric_limits<acc_t>::infinity();  // such a row has no gradient
      }
    }
  }

  void write_gradient(Step step, Piece& piece, int64_t r, Buffers& buffers) {
    if (a_.likelihood == Likelihood::kMultinomial) {
      multinomial_.gradient(piece, lse_[r], static_cast<acc_t>(entries_.total(r)));
      return;
    }
    if (step == Step::kValueAndGradient) {
      nll_[r] += loops_->value_and_gradient(piece);
      return;
    }
    // Through the softmax of the mean: less the row's sum, spread like the mean.
    piece.grad_log_theta = nullptr;  // has it from kRowSums
    acc_t* grad = piece.grad;
    piece.grad = nullptr;
    if (grad) piece.wide_grad = buffers.grad.data();
    loops_->gradient(piece);
    piece.grad = grad;
    if (grad)
      library_loops_.gradient(piece.x, piece.wide_grad, piece.cols, lse_[r],
                              static_cast<acc_t>(slope_[r]), grad);
  }

  const LinearNll& a_;
  const LinearNllLoops<scalar_t>& own_;
  const LinearNllLoops<acc_t>& wide_ = loops_of<acc_t>(isa_table<LinearNllTable>());
  const MultinomialNllLoops<acc_t>& multinomial_;
  const NllLoops<acc_t>* loops_;
  const LibraryLoops<acc_t>& library_loops_ = loops_of<acc_t>(negative_binomial_tables().library);
  std::vector<acc_t> theta_;  // exp of a log-dispersion that the rows share
  const PanelEntries<acc_t>& entries_;
  const std::optional<Tensor> bias_, zero_bias_, log_scale_, library_, row_weight_;
  LinearNllSums& sums_;
  const int64_t width_, block_rows_, blocks_;
  SharedSums<acc_t> bias_sums_, zero_bias_sums_, scale_sums_;
  std::vector<double> nll_, slope_;  // slope_: sum over a row of its gradient, for the library
  std::vector<acc_t> max_;
  std::vector<double> exp_sum_;
  std::vector<acc_t> lse_, shift_;
};

struct CpuBackend {
  static LinearNllResult run(const LinearNll& a) {
    LinearNllResult result;
    // h stands for the dtype that the products are made in.
    const Tensor h = as_contiguous(cast(detached(a.h), a.gemm_dtype));
    dispatch(a.op.c_str(), h, [&](auto scalar_type) {
      using scalar_t = typename decltype(scalar_type)::type;
      const PanelEntries<wide_t<scalar_t>> entries(a, as_contiguous(a.crow), as_contiguous(a.col),
                                                   as_contiguous(a.values));
      result = sweep_panels(a, h, DriverOptions{}, [&](const PanelPlan& plan, LinearNllSums& sums) {
        return CpuEpilogues<scalar_t>(a, plan, entries, sums);
      });
    });
    return result;
  }
};

}  // namespace
}  // namespace sparsevae

STABLE_TORCH_LIBRARY_IMPL(sparsevae_ext, CPU, m) {
  m.impl("linear_nll", TORCH_BOX(&sparsevae::linear_nll_op<sparsevae::CpuBackend>));
}
