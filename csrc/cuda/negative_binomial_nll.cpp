// The negative binomial likelihoods on CUDA: checks, outputs and workspaces, and the launches. The
// contract is in ../ops/negative_binomial_nll.cpp, the kernels in negative_binomial_nll_kernel.cuh.
// Nothing here waits for the device.
#include "negative_binomial_nll.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "../ops/negative_binomial_nll.h"
#include "context.h"
#include "tensor_types.h"

// The tests compile this file for the CPU key, with the kernels emulated.
#ifndef SPARSEVAE_CUDA_KEY
#define SPARSEVAE_CUDA_KEY CUDA
#endif

namespace sparsevae::cuda {
namespace {

using torch::stable::contiguous;
using torch::stable::new_empty;

// The arguments of every op, contiguous and kept alive, as a panel of all columns.
struct Whole {
  Tensor log_mu, log_theta, crow, col, values;
  std::optional<Tensor> zero_logits, library;
  NegativeBinomialPanel panel;

  Whole(const char* op, const Tensor& log_mu_in, const Tensor& log_theta_in,
        const Tensor* zero_logits_in, const std::optional<Tensor>& library_in,
        const Tensor& crow_in, const Tensor& col_in, const Tensor& values_in)
      : log_mu(contiguous(log_mu_in)),
        log_theta(contiguous(log_theta_in)),
        crow(contiguous(crow_in)),
        col(contiguous(col_in)),
        values(contiguous(values_in)) {
    // Without a row there is no kernel that would look at the row pointers.
    SPARSEVAE_CHECK(
        log_mu.size(0) > 0 || col.numel() == 0, op,
        "(): `crow_indices[..., -1] == nnz` is not satisfied, got no rows and nnz=", col.numel());
    if (zero_logits_in) zero_logits = contiguous(*zero_logits_in);
    if (library_in) library = contiguous(*library_in);
    panel.type = float_type(op, log_mu);
    panel.wide_index = crow.scalar_type() == ScalarType::Long;
    panel.rows = log_mu.size(0);
    panel.cols = panel.all_cols = panel.ld = log_mu.size(1);
    panel.x = log_mu.const_data_ptr();
    if (zero_logits) panel.x2 = zero_logits->const_data_ptr();
    panel.log_theta = log_theta.const_data_ptr();
    panel.ld_theta = log_theta.dim() == 2 ? panel.ld : 0;
    panel.crow = crow.const_data_ptr();
    panel.col = col.const_data_ptr();
    panel.values = values.const_data_ptr();
    panel.nnz = col.numel();
  }
};

std::tuple<Tensor, Tensor> forward(const char* op, const Tensor& log_mu, const Tensor& log_theta,
                                   const Tensor* zero_logits, const std::optional<Tensor>& library,
                                   const Tensor& crow, const Tensor& col, const Tensor& values) {
  check_negative_binomial(op, log_mu, log_theta, zero_logits, library, crow, col, values);
  const Context context(op, log_mu);
  Whole whole(op, log_mu, log_theta, zero_logits, library, crow, col, values);
  const int64_t rows = whole.panel.rows, none = 0;
  Tensor nll = torch::stable::new_zeros(log_theta, {rows});
  Tensor logsumexp = new_empty(log_theta, {library ? rows : none});
  Tensor shift = new_empty(log_theta, {library ? rows : none});
  if (library) {
    check_cuda(op, launch_negative_binomial_shift(whole.panel, whole.library->const_data_ptr(),
                                                  logsumexp.mutable_data_ptr(),
                                                  shift.mutable_data_ptr(), context.stream()));
    whole.panel.shift = shift.const_data_ptr();
  }
  whole.panel.nll = nll.mutable_data_ptr();
  check_cuda(op, launch_negative_binomial_value(whole.panel, context.stream()));
  return {nll, logsumexp};
}

Tensor wanted(const Tensor& like, bool wants) {
  if (!wants) return new_empty(like, {int64_t{0}});
  return like.dim() == 1 ? new_empty(like, {like.size(0)})
                         : new_empty(like, {like.size(0), like.size(1)});
}

std::tuple<Tensor, Tensor, Tensor, Tensor> backward(
    const char* op, const Tensor& grad_in, const Tensor& log_mu, const Tensor& log_theta,
    const Tensor* zero_logits, const std::optional<Tensor>& library, const Tensor& logsumexp_in,
    const Tensor& crow, const Tensor& col, const Tensor& values, bool wants_log_mu,
    bool wants_log_theta, bool wants_zero_logits, bool wants_library) {
  check_negative_binomial(op, log_mu, log_theta, zero_logits, library, crow, col, values);
  check_negative_binomial_backward(op, grad_in, log_mu, library, logsumexp_in);
  SPARSEVAE_CHECK(library || !wants_library, op, "(): expected a library to have a gradient of");
  const Context context(op, log_mu);
  Whole whole(op, log_mu, log_theta, zero_logits, library, crow, col, values);
  NegativeBinomialPanel& panel = whole.panel;
  const Tensor grad = contiguous(grad_in), logsumexp = contiguous(logsumexp_in);
  const int64_t none = 0;
  Tensor grad_log_mu = wanted(log_mu, wants_log_mu);
  Tensor grad_log_theta = wanted(log_theta, wants_log_theta);
  Tensor grad_zero_logits = wanted(log_mu, wants_zero_logits && zero_logits);
  const bool summed = wants_log_theta && panel.ld_theta == 0;
  const Tensor sums =
      new_empty(log_theta, {summed ? negative_binomial_row_blocks(panel.rows) * panel.cols : none});
  Tensor total = torch::stable::new_zeros(grad, {library ? panel.rows : none});
  Tensor grad_library = wanted(grad, wants_library);
  const Tensor shift = new_empty(grad, {library ? panel.rows : none});
  panel.weight = grad.const_data_ptr();
  const cudaStream_t stream = context.stream();
  if (library) {
    const void* given = whole.library->const_data_ptr();
    check_cuda(op,
               launch_negative_binomial_library(panel, given, logsumexp.const_data_ptr(), nullptr,
                                                shift.mutable_data_ptr(), nullptr, stream));
    panel.shift = shift.const_data_ptr();
    check_cuda(op, launch_negative_binomial_total(panel, total.mutable_data_ptr(), stream));
    panel.logsumexp = logsumexp.const_data_ptr();
    panel.total = total.const_data_ptr();
    if (wants_library)
      check_cuda(op, launch_negative_binomial_library(panel, given, nullptr, panel.total, nullptr,
                                                      grad_library.mutable_data_ptr(), stream));
  }
  if (wants_log_mu) panel.grad = grad_log_mu.mutable_data_ptr();
  if (wants_zero_logits && zero_logits) panel.grad2 = grad_zero_logits.mutable_data_ptr();
  if (wants_log_theta) panel.grad_log_theta = grad_log_theta.mutable_data_ptr();
  if (summed) panel.theta_sums = sums.mutable_data_ptr();
  if (panel.grad || panel.grad2 || panel.grad_log_theta)
    check_cuda(op, launch_negative_binomial_gradient(panel, stream));
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
}  // namespace sparsevae::cuda

STABLE_TORCH_LIBRARY_IMPL(sparsevae_ext, SPARSEVAE_CUDA_KEY, m) {
  m.impl("negative_binomial_nll", TORCH_BOX(&sparsevae::cuda::negative_binomial_nll));
  m.impl("negative_binomial_nll_backward",
         TORCH_BOX(&sparsevae::cuda::negative_binomial_nll_backward));
  m.impl("zero_inflated_negative_binomial_nll",
         TORCH_BOX(&sparsevae::cuda::zero_inflated_negative_binomial_nll));
  m.impl("zero_inflated_negative_binomial_nll_backward",
         TORCH_BOX(&sparsevae::cuda::zero_inflated_negative_binomial_nll_backward));
}
