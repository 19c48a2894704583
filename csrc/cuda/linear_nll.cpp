// linear_nll on CUDA: the epilogues of a panel. The contract is in ../ops/linear_nll.cpp, the order
// of the panels and the matrix products in ../ops/linear_nll_driver.h; the kernels are those of the
// likelihoods on given predictions, on a panel. Nothing here waits for the device.
//
// The bias is added by the library's product, so 16-bit predictions are rounded once, after it.
// Where a value needs the log-sum-exp (multinomial), it is made in the sweep after: the terms that
// it takes apart would cancel in float.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <cmath>

#include "../ops/linear_nll_driver.h"
#include "cell_nll.h"
#include "context.h"
#include "multinomial_nll.h"
#include "negative_binomial_nll.h"
#include "tensor_types.h"

// The tests compile this file for the CPU key, with the kernels emulated.
#ifndef SPARSEVAE_CUDA_KEY
#define SPARSEVAE_CUDA_KEY CUDA
#endif

namespace sparsevae::cuda {
namespace {

using torch::stable::contiguous;
using Launcher = cudaError_t (*)(const NllPanel&, cudaStream_t);

constexpr double kHalfLog2Pi = 0.91893853320467274178;

struct CellLaunchers {
  Launcher value = nullptr, value_and_gradient = nullptr;
};

CellLaunchers cell_launchers(Likelihood likelihood) {
  switch (likelihood) {
    case Likelihood::kBernoulli:
      return {&launch_bernoulli_value, &launch_bernoulli_value_and_gradient};
    case Likelihood::kPoisson:
      return {&launch_poisson_value, &launch_poisson_value_and_gradient};
    case Likelihood::kGaussian:
      return {&launch_gaussian_value, &launch_gaussian_value_and_gradient};
    default:
      return {};
  }
}

std::optional<Tensor> prepared(const std::optional<Tensor>& t, ScalarType dtype) {
  return t ? std::optional(contiguous(cast(detached(*t), dtype))) : std::nullopt;
}

class CudaEpilogues {
 public:
  // h is in gemm_dtype.
  CudaEpilogues(const LinearNll& a, const Tensor& h, const PanelPlan& plan, LinearNllSums& sums,
                const Context& context)
      : a_(a),
        op_(a.op.c_str()),
        type_(float_type(op_, h)),
        launchers_(cell_launchers(a.likelihood)),
        stream_(context.stream()),
        crow_(contiguous(a.crow)),
        col_(contiguous(a.col)),
        values_(contiguous(a.values)),
        bias_(prepared(a.bias, a.gemm_dtype)),
        zero_bias_(prepared(a.zero_bias, a.gemm_dtype)),
        // The Gaussian's kernels read the log-variance in the dtype of the means.
        log_scale_(prepared(a.log_scale, gaussian() ? a.gemm_dtype : a.wide())),
        library_(prepared(a.library, a.wide())),
        row_weight_(prepared(a.row_weight, a.wide())),
        sums_(sums) {
    const auto rows = [&](bool wanted) {
      return torch::stable::new_zeros(a.h, {wanted ? a.rows() : 0}, a.wide());
    };
    const bool lse = a.likelihood == Likelihood::kMultinomial || a.library;
    max_ = rows(lse);
    exp_sum_ = rows(lse);
    total_ = rows(lse);
    shift_ = rows(a.library.has_value());
    slope_ = rows(a.library.has_value());
    const bool shared = a.need_log_scale && a.log_scale->dim() == 1;
    int64_t blocks = 0;
    if (a.need_bias || a.need_zero_bias || (shared && gaussian())) blocks = column_blocks(a.rows());
    if (shared && !gaussian()) blocks = std::max(blocks, negative_binomial_row_blocks(a.rows()));
    workspace_ = torch::stable::new_empty(a.h, {blocks * plan.width}, a.wide());
    if (shared && gaussian())
      scale_grad_ = torch::stable::new_empty(a.h, {a.rows() * plan.width}, a.gemm_dtype);
    if (gaussian())  // its kernels leave the constant out
      torch::stable::fill_(sums_.nll, kHalfLog2Pi * static_cast<double>(a.features()));
  }

  // ---- what the driver asks for -----------------------------------------------------------------

  Tensor make(const Tensor& like, std::vector<int64_t> sizes, ScalarType dtype) const {
    return torch::stable::new_empty(like, sizes, dtype);
  }

  void multiply(const Tensor& out, const Tensor& h, const Tensor& weight, int64_t first,
                int layer) const {
    const std::optional<Tensor>& bias = layer == 0 ? bias_ : zero_bias_;
    if (bias)
      linear_out(out, h, weight, rows_of(*bias, first, weight.size(0)));
    else
      mm_out(out, h, transposed(weight));
  }

  // By a difference: the stable ABI has no sum of two tensors.
  void accumulate(Tensor& total, const Tensor& part) const {
    total = torch::stable::subtract(total, part, -1.0);
  }

  void step(Step step, Panel& panel) {
    NegativeBinomialPanel p = describe(panel);
    if (step == Step::kLogSumExp) {
      launch(launch_multinomial_lse(p, first_panel_, max_.mutable_data_ptr(),
                                    exp_sum_.mutable_data_ptr(), stream_));
      first_panel_ = false;
      return;
    }
    if (writes_gradients(step)) {
      if (a_.need_x()) p.grad = panel.one.grad.mutable_data_ptr();
      if (a_.need_x2()) p.grad2 = panel.zero->grad.mutable_data_ptr();
    }
    if (a_.likelihood == Likelihood::kMultinomial)
      multinomial_step(step, p);
    else if (a_.is_negative_binomial())
      negative_binomial_step(step, p);
    else
      cell_step(step, p);
    if (!writes_gradients(step)) return;
    if (a_.need_bias) sum_columns(p, p.grad, sums_.bias);
    if (a_.need_zero_bias) sum_columns(p, p.grad2, sums_.zero_bias);
  }

  void end_sweep(Step step) {
    NegativeBinomialPanel p = rows_only();
    if (step == Step::kLogSumExp) {
      // The maximum becomes the log-sum-exp, in place.
      launch(launch_multinomial_rows(p, max_.const_data_ptr(), exp_sum_.const_data_ptr(),
                                     max_.mutable_data_ptr(), total_.mutable_data_ptr(), stream_));
      if (a_.library) set_library(p, shift_.mutable_data_ptr(), nullptr);
    }
    if (step == Step::kRowSums && a_.need_library)
      set_library(p, nullptr, sums_.library.mutable_data_ptr());
  }

 private:
  bool gaussian() const { return a_.likelihood == Likelihood::kGaussian; }

  void launch(cudaError_t error) const { check_cuda(op_, error); }

  NegativeBinomialPanel rows_only() const {
    NegativeBinomialPanel p;
    p.type = type_;
    p.wide_index = crow_.scalar_type() == ScalarType::Long;
    p.rows = a_.rows();
    p.all_cols = a_.features();
    p.crow = crow_.const_data_ptr();
    p.col = col_.const_data_ptr();
    p.values = values_.const_data_ptr();
    p.nnz = col_.numel();
    return p;
  }

  NegativeBinomialPanel describe(const Panel& panel) const {
    NegativeBinomialPanel p = rows_only();
    p.first_col = panel.first;
    p.cols = p.ld = panel.cols;
    p.x = panel.one.x.const_data_ptr();
    if (panel.zero) p.x2 = panel.zero->x.const_data_ptr();
    if (gaussian() && log_scale_) {
      p.x2 = rows_of(*log_scale_, panel.first, panel.cols).const_data_ptr();
      p.x2_is_shared = true;
    } else if (log_scale_) {
      p.ld_theta = log_scale_->dim() == 2 ? a_.features() : 0;
      p.log_theta = element(*log_scale_, panel.first);
    }
    if (a_.library) p.shift = shift_.const_data_ptr();
    if (row_weight_) p.weight = row_weight_->const_data_ptr();
    p.nll = sums_.nll.mutable_data_ptr();
    return p;
  }

  // The address of one number of a contiguous tensor.
  static void* element(const Tensor& t, int64_t i) {
    return static_cast<char*>(t.mutable_data_ptr()) + i * static_cast<int64_t>(t.element_size());
  }

  void multinomial_step(Step step, NegativeBinomialPanel& p) {
    launch(launch_multinomial_value(p, max_.const_data_ptr(), stream_));
    if (step == Step::kGradient)
      launch(
          launch_multinomial_gradient(p, max_.const_data_ptr(), total_.const_data_ptr(), stream_));
  }

  void cell_step(Step step, NegativeBinomialPanel& p) {
    if (step == Step::kValue) return launch(launchers_.value(p, stream_));
    if (a_.need_log_scale) p.grad2 = scale_grad_.mutable_data_ptr();
    launch(launchers_.value_and_gradient(p, stream_));
    if (a_.need_log_scale) sum_columns(p, p.grad2, sums_.log_scale);
  }

  void negative_binomial_step(Step step, NegativeBinomialPanel& p) {
    // The gradient of log_theta comes with the first pass that has gradients.
    if (a_.need_log_scale && (step == Step::kValueAndGradient || step == Step::kRowSums)) {
      p.grad_log_theta = element(sums_.log_scale, p.first_col);
      p.theta_sums = workspace_.mutable_data_ptr();
    }
    switch (step) {
      case Step::kValueAndGradient:
        return launch(launch_negative_binomial_value_and_gradient(p, stream_));
      case Step::kGradient:
        p.logsumexp = max_.const_data_ptr();
        p.total = slope_.const_data_ptr();
        return launch(launch_negative_binomial_gradient(p, stream_));
      case Step::kRowSums:
        launch(launch_negative_binomial_total(p, slope_.mutable_data_ptr(), stream_));
        if (a_.need_log_scale) launch(launch_negative_binomial_gradient(p, stream_));
        return launch(launch_negative_binomial_value(p, stream_));
      default:
        return launch(launch_negative_binomial_value(p, stream_));
    }
  }

  void set_library(const NegativeBinomialPanel& p, void* shift, void* grad_library) const {
    launch(launch_negative_binomial_library(p, library_->const_data_ptr(), max_.const_data_ptr(),
                                            slope_.const_data_ptr(), shift, grad_library, stream_));
  }

  void sum_columns(const NegativeBinomialPanel& p, const void* matrix, const Tensor& sums) const {
    launch(launch_column_sums(p.type, matrix, p.rows, p.cols, workspace_.mutable_data_ptr(),
                              element(sums, p.first_col), stream_));
  }

  const LinearNll& a_;
  const char* op_;
  const FloatType type_;
  const CellLaunchers launchers_;
  cudaStream_t stream_;
  const Tensor crow_, col_, values_;
  const std::optional<Tensor> bias_, zero_bias_, log_scale_, library_, row_weight_;
  LinearNllSums& sums_;
  Tensor max_, exp_sum_;  // of a row's exponentials; later max_ is the log-sum-exp
  Tensor total_;          // a row's sum of values
  Tensor shift_, slope_;  // for the library: log(library / sum of exp), sum of a row's gradient
  Tensor workspace_, scale_grad_;
  bool first_panel_ = true;
};

struct CudaBackend {
  static LinearNllResult run(const LinearNll& a) {
    const Context context(a.op.c_str(), a.h);
    const Tensor h = contiguous(cast(detached(a.h), a.gemm_dtype));
    constexpr DriverOptions options{.largest_panels = true, .value_after_lse = true};
    return sweep_panels(a, h, options, [&](const PanelPlan& plan, LinearNllSums& sums) {
      return CudaEpilogues(a, h, plan, sums, context);
    });
  }
};

}  // namespace
}  // namespace sparsevae::cuda

STABLE_TORCH_LIBRARY_IMPL(sparsevae_ext, SPARSEVAE_CUDA_KEY, m) {
  m.impl("linear_nll", TORCH_BOX(&sparsevae::linear_nll_op<sparsevae::cuda::CudaBackend>));
}
