// l1_activity and l2_activity on the CPU: checks, threads and memory; the inner loops are in isa/.
//
// A thread owns whole rows, so the bits do not depend on the number of threads. The ops are bound
// by memory: outputs ask for huge pages before they are touched, and those that the caches could
// not hold are written past them. With relu and the L1 penalty a gradient needs one bit an element:
// the forward pass writes the bits, and the backward pass reads them in place of the values.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <tuple>

#include "../ops/activity.h"
#include "contiguous.h"
#include "dispatch.h"
#include "isa.h"
#include "isa/activity_isa.h"
#include "output.h"
#include "parallel.h"

namespace sparsevae {
namespace {

// Outputs from this size on are written past the caches. The activated values are read again by the
// backward pass, and while the last level of cache may still hold them that is worth more than the
// saved read; a backward pass that reads a mask leaves no such reason (docs/tuning.md).
constexpr int64_t kStreamValues = int64_t{24} << 20;
constexpr int64_t kStreamMaskedValues = int64_t{12} << 20;
constexpr int64_t kStreamGradient = int64_t{8} << 20;

Tensor new_matrix(const Tensor& like) { return new_output(like, {like.size(0), like.size(1)}); }

int64_t bytes(const Tensor& t) { return t.numel() * static_cast<int64_t>(t.element_size()); }

// Rows that may lie apart, or hold one number only, are read where they are: sum() and mean() hand
// down gradients that are expanded from a single number.
bool is_constant_by_row(const Tensor& t) { return t.stride(1) == 0 && t.size(1) > 1; }

Tensor with_readable_rows(const Tensor& t) {
  return t.stride(1) == 1 || is_constant_by_row(t) ? t : as_contiguous(t);
}

// body(first, last) over runs of rows of equal length.
template <typename F>
void over_rows(const Tensor& matrix, const F& body) {
  const int64_t n_rows = matrix.size(0);
  parallel_ranges(std::min(parts_for(matrix.numel()), n_rows), n_rows, body);
}

// `mask` as the op's contract has it, or null.
std::tuple<Tensor, Tensor> forward(const char* op, int order, const Tensor& h_in,
                                   Activation activation, uint8_t* mask) {
  const Tensor h = as_contiguous(h_in);
  Tensor activated = new_matrix(h);
  Tensor penalty = torch::stable::new_empty(h, {h.size(0)}, accumulation_type(h));
  dispatch(op, h, [&](auto scalar_type) {
    using scalar_t = typename decltype(scalar_type)::type;
    const auto& loops = loops_of<scalar_t>(isa_table<ActivityTable>());
    const ActivityForward<scalar_t> args{data<scalar_t>(h),
                                         static_cast<scalar_t*>(activated.data_ptr()),
                                         static_cast<wide_t<scalar_t>*>(penalty.data_ptr()),
                                         h.size(1),
                                         activation,
                                         order,
                                         bytes(h) >= (mask ? kStreamMaskedValues : kStreamValues),
                                         mask};
    over_rows(h, [&](int64_t first, int64_t last) { loops.forward(args, first, last); });
  });
  return {activated, penalty};
}

Tensor backward(const char* op, int order, const std::optional<Tensor>& grad_activated_in,
                const std::optional<Tensor>& grad_penalty_in, const Tensor& activated_in,
                Activation activation, const uint8_t* mask) {
  const Tensor activated = mask ? activated_in : as_contiguous(activated_in);
  const std::optional<Tensor> grad_penalty = as_contiguous(grad_penalty_in);
  std::optional<Tensor> grad_activated;
  if (grad_activated_in) grad_activated = with_readable_rows(*grad_activated_in);
  Tensor grad_h = new_matrix(activated);
  dispatch(op, activated, [&](auto scalar_type) {
    using scalar_t = typename decltype(scalar_type)::type;
    const auto& loops = loops_of<scalar_t>(isa_table<ActivityTable>());
    const ActivityBackward<scalar_t> args{data<scalar_t>(grad_activated),
                                          data<wide_t<scalar_t>>(grad_penalty),
                                          data<scalar_t>(activated),
                                          static_cast<scalar_t*>(grad_h.data_ptr()),
                                          activated.size(1),
                                          grad_activated ? grad_activated->stride(0) : 0,
                                          grad_activated && is_constant_by_row(*grad_activated),
                                          activation,
                                          order,
                                          bytes(activated) >= kStreamGradient,
                                          mask};
    if (activated.numel() == 0) return;  // an empty gradient has no address, as if it were missing
    over_rows(activated, [&](int64_t first, int64_t last) { loops.backward(args, first, last); });
  });
  return grad_h;
}

std::tuple<Tensor, Tensor> named_forward(const char* op, int order, const Tensor& h,
                                         const std::string& activation) {
  check_activity(op, h);
  return forward(op, order, h, parse_activation(op, activation), nullptr);
}

Tensor named_backward(const char* op, int order, const std::optional<Tensor>& grad_activated,
                      const std::optional<Tensor>& grad_penalty, const Tensor& activated,
                      const std::string& activation) {
  check_activity_backward(op, grad_activated, grad_penalty, activated);
  return backward(op, order, grad_activated, grad_penalty, activated,
                  parse_activation(op, activation), nullptr);
}

std::tuple<Tensor, Tensor> l1_activity(const Tensor& h, const std::string& activation) {
  return named_forward("l1_activity", 1, h, activation);
}

std::tuple<Tensor, Tensor> l2_activity(const Tensor& h, const std::string& activation) {
  return named_forward("l2_activity", 2, h, activation);
}

Tensor l1_activity_backward(const std::optional<Tensor>& grad_activated,
                            const std::optional<Tensor>& grad_penalty, const Tensor& activated,
                            const std::string& activation) {
  return named_backward("l1_activity_backward", 1, grad_activated, grad_penalty, activated,
                        activation);
}

Tensor l2_activity_backward(const std::optional<Tensor>& grad_activated,
                            const std::optional<Tensor>& grad_penalty, const Tensor& activated,
                            const std::string& activation) {
  return named_backward("l2_activity_backward", 2, grad_activated, grad_penalty, activated,
                        activation);
}

std::tuple<Tensor, Tensor, Tensor> l1_activity_relu(const Tensor& h) {
  const char* op = "l1_activity_relu";
  check_activity(op, h);
  Tensor mask = torch::stable::new_empty(h, {h.size(0), mask_bytes(h.size(1))}, ScalarType::Byte);
  auto [activated, penalty] =
      forward(op, 1, h, Activation::kRelu, static_cast<uint8_t*>(mask.data_ptr()));
  return {activated, penalty, mask};
}

Tensor l1_activity_relu_backward(const std::optional<Tensor>& grad_activated,
                                 const std::optional<Tensor>& grad_penalty, const Tensor& activated,
                                 const Tensor& mask_in) {
  const char* op = "l1_activity_relu_backward";
  check_activity_backward(op, grad_activated, grad_penalty, activated);
  check_activity_mask(op, activated, mask_in);
  const Tensor mask = as_contiguous(mask_in);
  return backward(op, 1, grad_activated, grad_penalty, activated, Activation::kRelu,
                  static_cast<const uint8_t*>(mask.data_ptr()));
}

}  // namespace
}  // namespace sparsevae

STABLE_TORCH_LIBRARY_IMPL(sparsevae_ext, CPU, m) {
  m.impl("l1_activity", TORCH_BOX(&sparsevae::l1_activity));
  m.impl("l2_activity", TORCH_BOX(&sparsevae::l2_activity));
  m.impl("l1_activity_backward", TORCH_BOX(&sparsevae::l1_activity_backward));
  m.impl("l2_activity_backward", TORCH_BOX(&sparsevae::l2_activity_backward));
  m.impl("l1_activity_relu", TORCH_BOX(&sparsevae::l1_activity_relu));
  m.impl("l1_activity_relu_backward", TORCH_BOX(&sparsevae::l1_activity_relu_backward));
}
