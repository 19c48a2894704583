// bernoulli_nll, poisson_nll and gaussian_nll on CUDA: checks, outputs and the launches. The
// contract is in ../ops/cell_nll.cpp. Nothing here waits for the device.
#include "cell_nll.h"

#include <torch/csrc/stable/library.h>

#include <optional>
#include <tuple>

#include "nll_glue.h"

// The tests compile this file for the CPU key, with the kernels emulated.
#ifndef SPARSEVAE_CUDA_KEY
#define SPARSEVAE_CUDA_KEY CUDA
#endif

namespace sparsevae::cuda {
namespace {

using torch::stable::contiguous;
using Launcher = cudaError_t (*)(const NllPanel&, cudaStream_t);

void set_logvar(NllPanel& panel, const std::optional<Tensor>& logvar) {
  if (!logvar) return;
  panel.x2 = logvar->const_data_ptr();
  panel.x2_is_shared = logvar->dim() == 1;
}

std::optional<Tensor> contiguous_if_given(const std::optional<Tensor>& t) {
  return t ? std::optional(contiguous(*t)) : std::nullopt;
}

Tensor forward(const char* op, const char* name, Launcher launch, const Tensor& x,
               const std::optional<Tensor>& logvar, const Tensor& crow, const Tensor& col,
               const Tensor& values) {
  check_nll(op, name, x, crow, col, values);
  check_logvar(op, x, logvar);
  const Context context(op, x);
  const Tensor x_c = contiguous(x), crow_c = contiguous(crow), col_c = contiguous(col),
               values_c = contiguous(values);
  const std::optional<Tensor> logvar_c = contiguous_if_given(logvar);
  NllPanel panel = whole_panel(op, x_c, crow_c, col_c, values_c);
  Tensor nll = torch::stable::new_zeros(values, {panel.rows});
  panel.nll = nll.mutable_data_ptr();
  set_logvar(panel, logvar_c);
  check_cuda(op, launch(panel, context.stream()));
  return nll;
}

std::tuple<Tensor, Tensor> backward(const char* op, const char* name, Launcher launch,
                                    const Tensor& grad, const Tensor& x,
                                    const std::optional<Tensor>& logvar, const Tensor& crow,
                                    const Tensor& col, const Tensor& values, bool wants_x,
                                    bool wants_logvar) {
  check_nll(op, name, x, crow, col, values);
  check_row_gradient(op, grad, name, x);
  check_logvar(op, x, logvar);
  const Context context(op, x);
  const Tensor x_c = contiguous(x), crow_c = contiguous(crow), col_c = contiguous(col),
               values_c = contiguous(values);
  const Tensor grad_c = contiguous(grad);
  const std::optional<Tensor> logvar_c = contiguous_if_given(logvar);
  Tensor grad_x = new_nll_gradient(x, wants_x), grad_logvar = new_nll_gradient(x, wants_logvar);
  NllPanel panel = whole_panel(op, x_c, crow_c, col_c, values_c);
  panel.weight = grad_c.const_data_ptr();
  if (wants_x) panel.grad = grad_x.mutable_data_ptr();
  if (wants_logvar) panel.grad2 = grad_logvar.mutable_data_ptr();
  set_logvar(panel, logvar_c);
  check_cuda(op, launch(panel, context.stream()));
  if (!wants_logvar || logvar->dim() == 2) return {grad_x, grad_logvar};

  Tensor sums = torch::stable::new_empty(values, {column_blocks(panel.rows), panel.cols});
  Tensor out = torch::stable::new_empty(values, {panel.cols});
  check_cuda(op,
             launch_column_sums(panel.type, grad_logvar.const_data_ptr(), panel.rows, panel.cols,
                                sums.mutable_data_ptr(), out.mutable_data_ptr(), context.stream()));
  return {grad_x, out};
}

Tensor bernoulli_nll(const Tensor& logits, const Tensor& crow, const Tensor& col,
                     const Tensor& values) {
  return forward("bernoulli_nll", "logits", &launch_bernoulli_value, logits, std::nullopt, crow,
                 col, values);
}

Tensor bernoulli_nll_backward(const Tensor& grad, const Tensor& logits, const Tensor& crow,
                              const Tensor& col, const Tensor& values) {
  return std::get<0>(backward("bernoulli_nll_backward", "logits", &launch_bernoulli_gradient, grad,
                              logits, std::nullopt, crow, col, values, true, false));
}

Tensor poisson_nll(const Tensor& log_rate, const Tensor& crow, const Tensor& col,
                   const Tensor& values) {
  return forward("poisson_nll", "log_rate", &launch_poisson_value, log_rate, std::nullopt, crow,
                 col, values);
}

Tensor poisson_nll_backward(const Tensor& grad, const Tensor& log_rate, const Tensor& crow,
                            const Tensor& col, const Tensor& values) {
  return std::get<0>(backward("poisson_nll_backward", "log_rate", &launch_poisson_gradient, grad,
                              log_rate, std::nullopt, crow, col, values, true, false));
}

Tensor gaussian_nll(const Tensor& mean, const std::optional<Tensor>& logvar, const Tensor& crow,
                    const Tensor& col, const Tensor& values) {
  return forward("gaussian_nll", "mean", &launch_gaussian_value, mean, logvar, crow, col, values);
}

std::tuple<Tensor, Tensor> gaussian_nll_backward(const Tensor& grad, const Tensor& mean,
                                                 const std::optional<Tensor>& logvar,
                                                 const Tensor& crow, const Tensor& col,
                                                 const Tensor& values, bool wants_mean,
                                                 bool wants_logvar) {
  const char* op = "gaussian_nll_backward";
  SPARSEVAE_CHECK(logvar || !wants_logvar, op,
                  "(): expected a logvar, whose gradient is wanted, but got None");
  return backward(op, "mean", &launch_gaussian_gradient, grad, mean, logvar, crow, col, values,
                  wants_mean, wants_logvar);
}

}  // namespace
}  // namespace sparsevae::cuda

STABLE_TORCH_LIBRARY_IMPL(sparsevae_ext, SPARSEVAE_CUDA_KEY, m) {
  m.impl("bernoulli_nll", TORCH_BOX(&sparsevae::cuda::bernoulli_nll));
  m.impl("bernoulli_nll_backward", TORCH_BOX(&sparsevae::cuda::bernoulli_nll_backward));
  m.impl("poisson_nll", TORCH_BOX(&sparsevae::cuda::poisson_nll));
  m.impl("poisson_nll_backward", TORCH_BOX(&sparsevae::cuda::poisson_nll_backward));
  m.impl("gaussian_nll", TORCH_BOX(&sparsevae::cuda::gaussian_nll));
  m.impl("gaussian_nll_backward", TORCH_BOX(&sparsevae::cuda::gaussian_nll_backward));
}
