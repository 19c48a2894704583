// multinomial_nll on CUDA: checks, outputs and the launches. The contract is in
// ../ops/multinomial_nll.cpp. Nothing here waits for the device.
#include "multinomial_nll.h"

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "nll_glue.h"

// The tests compile this file for the CPU key, with the kernels emulated.
#ifndef SPARSEVAE_CUDA_KEY
#define SPARSEVAE_CUDA_KEY CUDA
#endif

namespace sparsevae::cuda {
namespace {

using torch::stable::contiguous;

std::tuple<Tensor, Tensor, Tensor> multinomial_nll(const Tensor& logits, const Tensor& crow,
                                                   const Tensor& col, const Tensor& values) {
  const char* op = "multinomial_nll";
  check_nll(op, "logits", logits, crow, col, values);
  const Context context(op, logits);
  const Tensor x_c = contiguous(logits), crow_c = contiguous(crow), col_c = contiguous(col),
               values_c = contiguous(values);
  NllPanel panel = whole_panel(op, x_c, crow_c, col_c, values_c);
  Tensor nll = torch::stable::new_zeros(values, {panel.rows});
  Tensor lse = torch::stable::new_empty(values, {panel.rows});
  Tensor total = torch::stable::new_empty(values, {panel.rows});
  panel.nll = nll.mutable_data_ptr();
  void *lse_of = lse.mutable_data_ptr(), *total_of = total.mutable_data_ptr();
  // lse and total hold the running maximum and sum until they are made of them.
  check_cuda(op, launch_multinomial_lse(panel, true, lse_of, total_of, context.stream()));
  check_cuda(op,
             launch_multinomial_rows(panel, lse_of, total_of, lse_of, total_of, context.stream()));
  check_cuda(op, launch_multinomial_value(panel, lse_of, context.stream()));
  return {nll, lse, total};
}

Tensor multinomial_nll_backward(const Tensor& grad, const Tensor& logits, const Tensor& lse,
                                const Tensor& total, const Tensor& crow, const Tensor& col,
                                const Tensor& values) {
  const char* op = "multinomial_nll_backward";
  check_nll(op, "logits", logits, crow, col, values);
  check_row_gradient(op, grad, "logits", logits);
  check_accumulated(op, "lse", lse, logits.size(0), "logits", logits);
  check_accumulated(op, "total", total, logits.size(0), "logits", logits);
  const Context context(op, logits);
  const Tensor x_c = contiguous(logits), crow_c = contiguous(crow), col_c = contiguous(col),
               values_c = contiguous(values);
  const Tensor grad_c = contiguous(grad), lse_c = contiguous(lse), total_c = contiguous(total);
  Tensor out = new_nll_gradient(logits, true);
  NllPanel panel = whole_panel(op, x_c, crow_c, col_c, values_c);
  panel.weight = grad_c.const_data_ptr();
  panel.grad = out.mutable_data_ptr();
  check_cuda(op, launch_multinomial_gradient(panel, lse_c.const_data_ptr(),
                                             total_c.const_data_ptr(), context.stream()));
  return out;
}

}  // namespace
}  // namespace sparsevae::cuda

STABLE_TORCH_LIBRARY_IMPL(sparsevae_ext, SPARSEVAE_CUDA_KEY, m) {
  m.impl("multinomial_nll", TORCH_BOX(&sparsevae::cuda::multinomial_nll));
  m.impl("multinomial_nll_backward", TORCH_BOX(&sparsevae::cuda::multinomial_nll_backward));
}
